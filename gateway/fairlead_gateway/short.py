"""The short way: a plain request to one engine and back, without a task of its own.

Most plain requests find an idle connection, are answered whole, and that is all. For them a task with its coroutines, futures
and timers would cost more than the rest of the gateway's work. So they go by callbacks: sent in one turn of the loop,
answered in another. Whatever is out of the ordinary (no idle connection, a stale one, a failure, an answer too long to
hold) goes on as a task in ``forward`` from the very point that was reached; streams, hand-offs, deadlines of clients and
traced requests begin there. The rules are ``forward``'s: nothing is decided here.
"""

from abc import abstractmethod
from typing import Final

from fairlead.clock import Clock
from fairlead.limits import Limits
from fairlead_gateway.answer import Answer
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.forward import Begun, Forward
from fairlead_gateway.health import Health
from fairlead_gateway.holding import Holding
from fairlead_gateway.job import Job
from fairlead_gateway.judge import judge
from fairlead_gateway.lateness import FIELD, too_late
from fairlead_gateway.overdue import Endable, Overdue
from fairlead_gateway.quarantine import Quarantine
from fairlead_gateway.retry import Failure
from fairlead_gateway.route import Routes
from fairlead_gateway.routing import ModelRouter
from fairlead_gateway.upstream import Broken, Pool, Upstream

_NOBODY: Final[frozenset[str]] = frozenset()


class Host:
    """Whose requests they are. (A base, not a Protocol: compiled, its methods are called directly.)"""

    @abstractmethod
    def under_way(self, job: Job, short: "Short") -> None:
        """The request is in flight; ``short.cancel`` ends it."""

    @abstractmethod
    def longer(self, job: Job, begun: Begun) -> None:
        """Go on as a task."""

    @abstractmethod
    def done(self, job: Job, error: GatewayError | None = None) -> None:
        """It has ended; with ``error`` the client has still to be told."""

    @abstractmethod
    def defect(self, job: Job, error: Exception) -> None:
        """Something of ours failed."""


class ShortWay:
    """What all short requests of a gateway share; ``prefilling`` are the routers of engines that only prefill."""

    def __init__(
        self,
        host: Host,
        *,
        forward: Forward,
        pool: Pool,
        health: Health,
        quarantine: Quarantine,
        prefilling: Routes,
        holding: Holding,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self.host = host
        self.forward = forward
        self.pool = pool
        self.health = health
        self.answer_seconds: float = limits.answer_seconds
        self.now = clock.now
        self.overdue = Overdue(pool.loop, self.answer_seconds, clock.now)
        self._quarantine = quarantine
        self._prefilling = prefilling
        self._holding = holding

    def fits(self, job: Job) -> bool:
        """Whether nothing of the request asks for more, and it need not wait."""
        ask = job.ask
        plain = not (
            ask.stream
            or ask.opaque
            or job.trace is not None
            or self._quarantine.knows(ask.body)
            or job.request.head.get(FIELD) is not None
            or self._prefilling.has(ask.key)
        )
        return plain and self._holding.straight(job)

    def go(self, job: Job) -> None:
        """Send it. Raises GatewayError when it cannot go anywhere."""
        forward, now = self.forward, job.request.received
        forward.budget.request(now)
        instance = forward.choose(job, _NOBODY, now)
        connection = self.pool.idle(instance.url) if self._holding.begins(job) else None
        if connection is None:
            self.host.longer(job, Begun(instance))
            return
        job.until = now + self.answer_seconds
        message = forward.message(job, instance)
        short = Short(self, job, forward.dispatched(job, now), connection, message)
        self.overdue.begin(short, now)
        self.host.under_way(job, short)
        short.answer = forward.ask(job, connection, message, short.decided)


class Short(Endable):
    """One of them."""

    __slots__ = ("_connection", "_job", "_message", "_over", "_router", "_way", "answer")

    def __init__(
        self, way: ShortWay, job: Job, router: ModelRouter, connection: Upstream, message: list[bytes]
    ) -> None:
        super().__init__()
        self._way = way
        self._job = job
        self._router = router
        self._connection = connection
        self._message = message
        self._over = False
        self.answer: Answer | None = None

    def decided(self, broken: Broken | None) -> None:
        """The engine answered, or failed."""
        job, way, answer = self._job, self._way, self.answer
        if self._over or answer is None:
            return
        self._over = True
        way.overdue.end(self)
        try:
            if broken is not None or not answer.complete or not self._good(answer):
                assert job.instance is not None
                way.host.longer(job, Begun(job.instance, self._connection, answer, self._message, broken))
                return
            job.status = answer.status
            job.first_at, job.last_at = answer.first_at, answer.last_at
            now = job.last_at if job.last_at is not None else way.now()  # it came in this very turn of the loop
            way.health.answered(job, now)
            way.forward.ended(job, self._router, True, now)
            way.forward.pass_whole(job, answer, now)
            way.host.done(job)
        except Exception as error:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            way.host.defect(job, error)

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        if not self._over:
            self._give_up()
            self._job.client_gone = True
            self._way.host.done(self._job)

    def late(self) -> None:
        """It took longer than any answer may."""
        if not self._over:
            self._give_up()
            self._way.health.late(self._job)
            self._way.host.done(self._job, too_late(self._job.request.head, self._way.answer_seconds))

    def _good(self, answer: Answer) -> bool:
        try:
            judge(self._job, answer, None, False)
        except Failure:
            return False  # said again, and acted on, on the long way
        return True

    def _give_up(self) -> None:
        self._over = True
        self._way.overdue.end(self)
        self._connection.abort()
        self._way.forward.ended(self._job, self._router, False, self._way.now())

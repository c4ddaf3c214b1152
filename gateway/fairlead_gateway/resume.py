"""After the first byte: another engine says the rest of a stream that broke, when the request allows that. Once, not again."""

from collections.abc import Callable
from functools import partial

from fairlead.clock import Clock
from fairlead.decision import Decision
from fairlead.fleet import Instance
from fairlead.limits import Limits
from fairlead_gateway.answer import Answer
from fairlead_gateway.continuation import Said, continued_body, fitted, whole_usage
from fairlead_gateway.decision_log import CONTINUED
from fairlead_gateway.errors import NoInstance
from fairlead_gateway.health import Health
from fairlead_gateway.job import Job
from fairlead_gateway.keepalive import KeepAlive
from fairlead_gateway.lateness import remaining
from fairlead_gateway.retry import DIED, RetryBudget
from fairlead_gateway.route import Routes
from fairlead_gateway.served_name import body_for
from fairlead_gateway.steps import ATTEMPT, CONTINUATION
from fairlead_gateway.telemetry import Telemetry
from fairlead_gateway.upstream import Broken, Pool, Upstream
from fairlead_gateway.wire import engine_request


class Resume:
    """Continues streams. One object serves all requests of a gateway.

    ``chosen`` makes a choice the job's, under the attempt's number.
    """

    def __init__(
        self,
        *,
        routes: Routes,
        pool: Pool,
        telemetry: Telemetry,
        chosen: Callable[[Job, Instance, Decision, int], None],
        clock: Clock,
        limits: Limits,
        health: Health,
        budget: RetryBudget,
        follow: Callable[[Answer, Upstream, bool], None],
        died: Callable[[Job, str, float], bool],
    ) -> None:
        self._routes = routes
        self._pool = pool
        self._telemetry = telemetry
        self._chosen = chosen
        self._clock = clock
        self._limits = limits
        self._health = health
        self._budget = budget
        self._follow = follow
        self._died = died

    async def rest(self, job: Job, said: Said, why: str, kept: KeepAlive) -> str | None:
        """The rest of the answer from another instance: None when it is complete now, else what went wrong."""
        if job.trace is not None:
            job.trace.ended(ATTEMPT, why)
        if not said.read():
            return why
        body = continued_body(job.ask, said)
        instance = self._choose(job, why) if body is not None else None
        if body is None or instance is None:
            return why
        if instance.served_name is not None:
            body = body_for(instance.served_name, body)
        key, breaker = job.ask.key, self._health.breaker
        connection: Upstream | None = None
        answer: Answer | None = None
        breaker.sent(instance.id)
        began = self._clock.now()
        try:
            connection = self._pool.idle(instance.url) or await self._pool.connect(instance.url)
            answer = self._ask(job, instance, body, said, connection)
            broken = await answer.verdict
            if broken is not None and not broken.stale:
                self._health.broke(job, instance.id, broken.why)
                if broken.why in DIED:
                    self._died(job, instance.id, began)
            if broken is not None or not answer.stream or answer.events.fault is not None or answer.events.aborted:
                return why
            breaker.good(instance.id, self._clock.now())
            rest = await self._pass(job, instance, answer, connection, said, kept)
            if rest == "cut":
                self._died(job, instance.id, began)
            return rest
        except Broken as error:
            self._health.broke(job, instance.id, error.why)
            return why
        finally:
            breaker.unknown(instance.id)
            done = answer is not None and answer.ended.done() and answer.ended.result() is None
            if connection is not None and answer is not None and not answer.complete and not answer.events.done:
                connection.abort()
            self._telemetry.continued(key, "whole" if done else "broken")

    def _choose(self, job: Job, why: str) -> Instance | None:
        now = self._clock.now()
        assert job.instance is not None
        if why not in ("cut", "gone") and not self._budget.take(now):
            return None
        try:
            decision = self._routes.choose(job.ask.key, job.route, now, frozenset({job.instance.id}))
        except NoInstance:
            return None
        instance = self._routes.ready(job.ask.key, decision.chosen) if decision.chosen is not None else None
        if instance is None:
            return None
        decision = decision.told(rule=CONTINUED, reason=f"continued after {why}; {decision.rule}: {decision.reason}")
        self._chosen(job, instance, decision, job.attempt + 1)
        return instance

    def _ask(self, job: Job, instance: Instance, body: bytes, said: Said, connection: Upstream) -> Answer:
        head = job.request.head
        more = remaining(head, job.until, self._clock.now())
        if job.trace is not None:
            more += job.trace.asked(instance, CONTINUATION, CONTINUED)
        message = engine_request(instance.url, head.path, head, body, job.request.id, rank=instance.dp_rank, more=more)
        patience = job.patience = self._health.last_patience(job, connection.peer)
        answer = Answer(
            stream=True,
            strip=job.ask.strip_usage,
            clock=self._clock,
            limits=self._limits,
            loop=self._pool.loop,
            silent=patience.more,
        )
        answer.rewrite = partial(fitted, said=said)
        if job.router is not None:
            job.router.dispatched(job.route, instance.id, self._clock.now())
        connection.ask(message, answer, patience.begin(self._clock.now()))
        return answer

    async def _pass(
        self, job: Job, instance: Instance, answer: Answer, connection: Upstream, said: Said, kept: KeepAlive
    ) -> str | None:
        now, key, name, telemetry = self._clock.now(), job.ask.key, instance.id, self._telemetry
        if job.router is not None:
            job.router.first_token(job.route.id, now)
        if job.last_at is not None:
            telemetry.inter_token(key, name, now - job.last_at)
        job.reply.flow = partial(self._follow, answer, connection)
        kept.begin(answer)
        answer.pass_to(job.reply, lambda seconds: telemetry.inter_token(key, name, seconds))
        why = await answer.ended
        job.last_at, job.events = answer.last_at, job.events + answer.events.count
        job.counted(whole_usage(answer.events.usage, said))
        if why is not None:
            self._health.broke(job, name, why)
        return why

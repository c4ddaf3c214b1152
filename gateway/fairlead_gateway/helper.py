"""The helper process: everything of a gateway that is slow. It follows files or the cluster, asks engines and Redis, answers the
management port and looks after the workers, which carry the bytes.

Files are followed here and not in each worker: one process looks, one finds what is wrong with them, all workers change at the same
moment, and none of them needs a YAML reader. Nothing of a request waits for the helper; while it is busy, only what it shows is late.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fairlead import system
from fairlead.clock import Clock
from fairlead.fleet import Fleet, FleetSource
from fairlead.lag import LoopLag
from fairlead.limits import Limits
from fairlead.tasks import ended, failed
from fairlead_gateway import channel_messages as say
from fairlead_gateway import quiet_log
from fairlead_gateway.beside import Beside
from fairlead_gateway.crew import Crew, summed, together
from fairlead_gateway.decision_log import Logged
from fairlead_gateway.early import Early
from fairlead_gateway.errors import Refused
from fairlead_gateway.hand import Hand
from fairlead_gateway.indexing.links import Links
from fairlead_gateway.indexing.side import IndexSide
from fairlead_gateway.keys_file import KeysFile
from fairlead_gateway.learning.rows import Rows
from fairlead_gateway.learning.side import LearnSide
from fairlead_gateway.management import Look
from fairlead_gateway.management.serving import Management
from fairlead_gateway.ports import url
from fairlead_gateway.reach import Reach
from fairlead_gateway.standings import standings
from fairlead_gateway.telemetry import Telemetry
from fairlead_gateway.telemetry.parts import series_of
from fairlead_gateway.tls import Certificate
from fairlead_gateway.tokenizing.service import Tokenizing
from fairlead_gateway.waking import Waker
from fairlead_gateway.watch import Watch
from fairlead_gateway.wired import logged_of, record_of
from fairlead_kvstore.truth.changes import Change

if TYPE_CHECKING:  # without an engine that tells what it holds neither is loaded
    from fairlead_gateway.indexing.source import Source
    from fairlead_kvstore.links.kept import KeptLinks
    from fairlead_kvstore.links.lesson import Lesson

_log = logging.getLogger("fairlead.gateway")
_NOTES_SECONDS = 0.2
_COUNT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What one gateway is to be. ``public`` is held and does not listen; ``private`` is the listening management port.
    ``autoscaler`` is the URL at which it hears hints; ``tokenizers`` is the folder of tokenizers; ``index_secret`` keys the hashes of
    an index in Redis, as its indexer's does."""

    public: socket.socket
    private: socket.socket
    source: FleetSource
    gateway_id: str
    secret: bytes
    pepper: bytes | None = None
    keys: KeysFile | None = None
    certificate: Certificate | None = None
    redis: str | None = None
    reach: Reach | None = None
    autoscaler: str | None = None
    token: str | None = None
    hosts: Sequence[str] = ()
    links: Links = Links.ENGINE
    tokenizers: str = ""
    index_secret: bytes = b""
    environ: Mapping[str, str] = field(default_factory=dict)


class Lag(LoopLag):
    """The lateness of the latest of several loops, by quantile."""

    def __init__(self, told: Sequence[Sequence[tuple[float, float]]]) -> None:
        super().__init__(keep=1)
        self._told = [dict(quantiles) for quantiles in told]

    def quantile(self, share: float) -> float | None:
        """Seconds; None where no worker has told it."""
        return max((told[share] for told in self._told if share in told), default=None)


class Helper:
    """One gateway; also what the management port looks at. ``announce`` gets the line that says where it listens."""

    def __init__(
        self, plan: Plan, early: Early, *, clock: Clock, limits: Limits, announce: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._clock = clock
        self._limits = limits
        self._announce = announce
        self._notes: list[str] = []
        self._watches = self._watched(plan)
        self._draining = False
        self._broken = False
        self._hurry = asyncio.Event()
        self._fleet = Fleet()
        self._waker = None if plan.autoscaler is None else Waker(plan.autoscaler, plan.token, clock, limits)
        self.started = clock.now()
        self.crew = Crew(
            early,
            setup=self._setup,
            told=self._told,
            indexed=self._indexed,
            learned=self._rows,
            waking=self._wakes,
            joined=self._joined,
            clock=clock,
            limits=limits,
        )
        self._tokenizing = Tokenizing(clock, limits, plan.environ) if plan.links is Links.PROCESS else None
        self.index = IndexSide(
            workers=lambda: [hand for hand in self.crew.hands if hand.is_ready],
            source=self._source_of_index,
            links=plan.links,
            secret=plan.index_secret if plan.redis is not None else plan.secret,
            clock=clock,
            limits=limits,
            reach=plan.reach,
            tokenize=self._tokenizing,
            tokenizers=plan.tokenizers,
            keep=self._links_kept if plan.redis is not None and plan.index_secret else None,
        )
        self.beside = Beside(
            fleet=self.crew.fleet,
            loads=self.crew.loads,
            clock=clock,
            limits=limits,
            gateway_id=plan.gateway_id,
            secret=plan.secret,
            workers=self.crew,
            redis=plan.redis,
            reach=plan.reach,
        )
        self.learning = LearnSide(tell=self.crew.tell, clock=clock, limits=limits)
        if self.beside.others is not None:
            self.beside.others.elsewhere = self._sent_elsewhere
            self.beside.others.hints = self.index.hints
            self.index.hot = self.beside.others.shared

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, then drain; 0, or 1 when a second signal cut that short, or a defect was the reason.

        Raises FairleadError when a file cannot be used at the start."""
        loop = asyncio.get_running_loop()
        stop, hurry = asyncio.Event(), self._hurry
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())
        loop.set_exception_handler(quiet_log.loop_defect)
        stopped = loop.create_task(stop.wait())
        starting = loop.create_task(self._start())
        try:
            await asyncio.wait({stopped, starting}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await self._serve(await starting, stopped)
        finally:
            await ended(starting)
            await ended(stopped)
            await self.crew.end()
            for watch in self._watches:
                await watch.stop()
        return int(self._hurry.is_set() or self._broken)

    async def _start(self) -> AsyncIterator[Fleet]:
        for watch in self._watches:
            await watch.start()
        snapshots = self._plan.source.watch()
        self._fleet = await anext(snapshots)
        if self._plan.reach is not None:
            self._plan.reach.apply(self._fleet)
        self.index.apply(self._fleet)
        self.learning.apply(self._fleet)
        self._notes = self._present_notes()
        await self.crew.start(self._fleet)
        return snapshots

    async def _serve(self, snapshots: AsyncIterator[Fleet], stopped: "asyncio.Task[bool]") -> None:
        plan, loop = self._plan, asyncio.get_running_loop()
        management = Management(self, plan.private, limits=self._limits, token=plan.token, hosts=plan.hosts)
        await management.start()
        self.beside.start()
        self.index.start()
        self.learning.start()
        work = [loop.create_task(one) for one in (self._follow(snapshots), self._tell_notes(), self._keep_counts())]
        try:
            system.settled()
            secure = plan.certificate is not None
            self._announce(f"ready {url(plan.public, secure=secure)} manage {url(plan.private)}")
            defect = await failed(work, stopped)
            if defect is not None:  # to be started anew is better than to serve an old fleet on
                self._broken = True
                _log.critical("the gateway ends, since a part of it has failed", exc_info=defect)
            self._draining = True
            plan.public.close()
            await self.crew.stop(self._hurry)
        finally:
            for task in work:
                await ended(task)
            await management.stop()
            await self.learning.stop()
            await self.index.stop()
            if self._tokenizing is not None:
                await self._tokenizing.close()
            await self.beside.stop()
            if self._waker is not None:
                await self._waker.close()

    # Files ---------------------------------------------------------------------------------------------------------------

    def _watched(self, plan: Plan) -> list[Watch]:
        found = []
        if plan.keys is not None:
            keys = plan.keys

            async def read() -> None:
                await keys.load()
                self.crew.tell(say.Keys(dict(keys.names)))

            found.append(Watch("the keys file", [keys.path], read))
        if plan.certificate is not None:
            certificate = plan.certificate

            async def renew() -> None:
                await certificate.load()
                self.crew.tell(say.Renew())

            found.append(Watch("the certificate", certificate.files, renew))
        return found

    async def _follow(self, snapshots: AsyncIterator[Fleet]) -> None:
        async for fleet in snapshots:
            self._fleet = fleet
            if self._plan.reach is not None:
                self._plan.reach.apply(fleet)
            self.index.apply(fleet)
            self.learning.apply(fleet)
            self.crew.apply(fleet)

    def _setup(self, number: int, row: int, siblings: list[int], slots: dict[str, int]) -> say.Setup:
        plan = self._plan
        host, port = plan.public.getsockname()[:2]
        files = plan.certificate.files if plan.certificate is not None else None
        return say.Setup(
            number=number,
            gateway_id=plan.gateway_id,
            host=host,
            port=port,
            secret=plan.secret,
            pepper=plan.pepper,
            keys=dict(plan.keys.names) if plan.keys is not None else None,
            certificate=(str(files[0]), str(files[1])) if files is not None else None,
            fleet=self._fleet,
            slots=slots,
            row=row,
            siblings=siblings,
            publish=plan.redis is not None,
            indexed=plan.links is not Links.OFF,
            notes=self._notes,
        )

    # Notes and counters --------------------------------------------------------------------------------------------------

    async def _tell_notes(self) -> None:
        """What people ask the public port should hold what only the helper knows."""
        while True:
            await asyncio.sleep(_NOTES_SECONDS)
            found = self._present_notes()
            if found != self._notes:
                self._notes = found
                self.crew.tell(say.Notes(found))

    async def _keep_counts(self) -> None:
        """A worker that dies takes along at most what it counted since it was last asked."""
        while True:
            await asyncio.sleep(_COUNT_SECONDS)
            await self.crew.count(windows=False)

    def _present_notes(self) -> list[str]:
        found = self._plan.source.notes()
        found += [watch.problem for watch in self._watches if watch.problem]
        if self._waker is not None:
            found += self._waker.notes()
        return [*found, *self.crew.notes(), *quiet_log.problems(), *self.beside.notes(), *self.index.notes()]

    def _told(self, told: say.Told) -> None:
        decisions, others = self.beside.decisions, self.beside.others
        if decisions is not None:
            decisions.dropped += told.dropped
            for record in told.records:
                decisions.offer(record_of(record))
        if others is not None:
            others.told(told)

    def _indexed(self, hand: Hand, message: say.Seen | say.Given) -> None:
        self.index.heard(hand, message)

    def _rows(self, rows: Rows) -> None:
        self.learning.heard(rows)

    def _wakes(self, model: str) -> None:
        if self._waker is not None:
            self._waker.heard(model)

    def _joined(self) -> None:
        self.index.joined()
        self.learning.joined()

    def _sent_elsewhere(self, model_key: str, instance: str, tail: int, hashes: Sequence[int]) -> None:
        self.index.sent_elsewhere(model_key, instance, tail, hashes)
        self.learning.elsewhere(instance, hashes)

    def _source_of_index(
        self, on_changes: Callable[[str, Sequence[Change]], None], on_reload: Callable[[str], None]
    ) -> "Source":
        """Made when an engine first tells what it holds: most of what it takes is loaded then."""
        from fairlead_gateway.indexing.source import LocalSource, RedisSource

        plan, link = self._plan, self.beside.link
        if link is not None:
            return RedisSource(link, on_changes, on_reload, self._clock, self._limits)
        return LocalSource(on_changes, self._clock, self._limits, secret=plan.secret, environ=plan.environ)

    def _links_kept(self, learned: "Callable[[str, Lesson], None]") -> "KeptLinks":
        """Of gateways that hash alike: without a secret that they share each one's links mean nothing to the others."""
        from fairlead_kvstore.links.kept import KeptLinks

        plan, link = self._plan, self.beside.link
        assert link is not None
        return KeptLinks(link, plan.gateway_id, learned, secret=plan.index_secret, limits=self._limits)

    # The management port's view ------------------------------------------------------------------------------------------

    @property
    def clock(self) -> Clock:
        """The clock of all processes of this machine."""
        return self._clock

    def fleet(self) -> Fleet:
        """What every worker routes over, with the engines' last signals."""
        return self.beside.fleet()

    async def look(self) -> Look:
        """How the workers are."""
        states = await self._states()
        notes = self._present_notes()
        pushed = {*notes, *self._notes, "draining"}
        for number, state in states:
            own = [note for note in state.notes if note not in pushed]
            notes += [note if self.crew.size == 1 else f"worker {number}: {note}" for note in own]
        ready = not self._draining and any(state.ready for _, state in states)
        if self._draining:
            notes = ["draining", *notes]
        return Look(
            ready,
            notes,
            together(state.loads for _, state in states),
            standings([state.standings for _, state in states]),
            Lag([state.lag for _, state in states]),
            self.index.look(),
            None if self.beside.others is None else self.beside.others.heard(),
            self.learning.look,
            summed(state.held for _, state in states),
        )

    async def counted(self, *, windows: bool) -> Telemetry:
        """The counters of all workers."""
        parts = await self.crew.count(windows=windows)
        now = self._clock.now()
        telemetry = Telemetry(self._clock, self._limits)
        telemetry.started = self.started
        telemetry.shared = self.beside.decisions
        for key, part in parts.items():
            telemetry.models[key] = series_of(part, now)
            await asyncio.sleep(0)
        telemetry.own.update(self.crew.own())
        if self.beside.others is not None:
            telemetry.peers = self.beside.others.own()
        telemetry.index = self.index.look()
        telemetry.own["workers"] = self.crew.serving
        telemetry.own["worker_deaths_total"] = self.crew.deaths
        age = self._plan.source.age_seconds()
        if age is not None:
            telemetry.own["fleet_age_seconds"] = int(age)
        return telemetry

    async def decisions(self, limit: int, model_key: str | None) -> list[Logged]:
        """The last requests of all workers, newest first."""
        answers = await self.crew.ask(lambda number: say.AskDecisions(number, limit, model_key), list[say.WireLogged])
        wired = [one for _, pieces in answers for piece in pieces for one in piece]
        wired.sort(key=lambda one: one.records[0].wall, reverse=True)
        return [logged_of(one) for one in wired[:limit]]

    async def decision(self, request_id: str) -> Logged | None:
        """One request; where a client gave an id to several, the newest."""
        answers = await self.crew.ask(lambda number: say.AskDecision(number, request_id), list[say.WireLogged])
        wired = [one for _, pieces in answers for piece in pieces for one in piece]
        return logged_of(max(wired, key=lambda one: one.records[-1].wall)) if wired else None

    async def would(self, path: str, body: bytes, session: str | None) -> list[Logged]:
        """Where that request would go, by each worker that answers."""
        answers = await self.crew.ask(lambda number: say.AskWhere(number, path, body, session), say.Would)
        said = [pieces[0] for _, pieces in answers]
        found = [logged_of(one.found) for one in said if one.found is not None]
        refused = next((one.refused for one in said if one.refused is not None), None)
        if refused is not None and not found:
            raise Refused(*refused)
        return found

    async def _states(self) -> list[tuple[int, say.State]]:
        answers = await self.crew.ask(say.AskState, say.State)
        for hand, pieces in answers:
            if not hand.said_last:
                hand.own = pieces[0].own
        return sorted(((hand.number, pieces[0]) for hand, pieces in answers), key=lambda found: found[0])

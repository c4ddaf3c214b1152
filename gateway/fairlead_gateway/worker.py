"""``python -m fairlead_gateway.worker``: one of the processes that carry the bytes. The helper starts it; nobody else should.

It has no web framework, no Redis client and no YAML reader: what it works from comes over its channel, as values. When the channel
ends, the helper is gone: then it stops accepting, lets what is in flight finish, and ends. SIGTERM and the helper's word do the same.
"""

import asyncio
import logging
import mmap
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead import system
from fairlead.clock import SystemClock
from fairlead.compiled import is_compiled
from fairlead.errors import FairleadError
from fairlead.fleet import Fleet
from fairlead.limits import Limits
from fairlead.loops import loop_factory
from fairlead.settings import GatewaySettings, read
from fairlead_gateway import channel_messages as say
from fairlead_gateway import forward, memory, quiet_log
from fairlead_gateway.answers import Answers
from fairlead_gateway.channel import Channel
from fairlead_gateway.gateway import Gateway
from fairlead_gateway.index_telling import IndexTeller, correct
from fairlead_gateway.keys import Keys
from fairlead_gateway.learning.rows import RowTeller
from fairlead_gateway.ports import Address
from fairlead_gateway.request_ids import RequestIds
from fairlead_gateway.routing.shared import SharedRows, Siblings
from fairlead_gateway.server import Server
from fairlead_gateway.telling import Hearer, Teller, hashes_of
from fairlead_gateway.tls import Certificate

if TYPE_CHECKING:  # most gateways observe nothing, and then need none of it
    from fairlead_gateway.observing import Observing

_log = logging.getLogger("fairlead.gateway")
_LAST_WORDS_SECONDS = 1.0
_LEAVE_SECONDS = 10.0  # for the helper to put another in the place of a worker that was told to go


class Worker:
    """One worker. ``rows`` is the memory shared with siblings, None where there are none."""

    def __init__(self, settings: GatewaySettings, limits: Limits, rows: mmap.mmap | None) -> None:
        self._settings = settings
        self._limits = limits
        self._rows = rows
        self._clock = SystemClock()
        self._loop = asyncio.get_running_loop()
        self._setup: asyncio.Future[say.Setup | None] = self._loop.create_future()
        self._stop = asyncio.Event()
        self._gone = asyncio.Event()
        self._channel: Channel[say.ToWorker] = Channel(say.ToWorker, self._received, self._lost, limits)
        self._waiting: list[say.ToWorker] = []
        self._notes: list[str] = []
        self._problem: str | None = None
        self._gateway: Gateway | None = None
        self._keys: Keys | None = None
        self._certificate: Certificate | None = None
        self._shared: SharedRows | None = None
        self._teller: Teller | None = None
        self._hearer: Hearer | None = None
        self._index: IndexTeller | None = None
        self._answers: Answers | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, sock: socket.socket) -> int:
        """Serve until told to stop; 0 after a clean drain, 2 when it could not start."""
        self._loop.add_signal_handler(signal.SIGTERM, self._leave)
        self._loop.set_exception_handler(quiet_log.loop_defect)
        await self._channel.open(sock)
        setup = await self._setup
        if setup is None:
            return 0
        observing = self._observing(setup)
        try:
            server = await self._started(setup, observing)
        except (FairleadError, OSError) as error:
            self._channel.send(say.Failed(str(error)))
            await self._closed()
            return 2
        try:
            await self._stop.wait()
            await server.drain()
        finally:
            server.close()
            self._last_words()
            await self._closed()
        return 0

    # Start ---------------------------------------------------------------------------------------------------------------

    async def _started(self, setup: say.Setup, observing: "Observing | None") -> Server:
        if setup.certificate is not None:
            self._certificate = Certificate(Path(setup.certificate[0]), Path(setup.certificate[1]))
            await self._certificate.load()
        if setup.keys is not None and setup.pepper is not None:
            self._keys = Keys(setup.pepper, setup.keys)
        gateway = self._gateway = self._made(setup, observing)
        self._notes = setup.notes
        gateway.problems = self._problems
        self._answers = Answers(gateway, self._channel.send)
        self._place(setup.slots)
        gateway.apply(setup.fleet)
        system.settled()  # takes tens of milliseconds: before anybody is served
        system.collect_seldom()
        public = Address(setup.host, setup.port).bind(shared=True)
        server = Server(gateway, public, self._certificate)
        await server.start()
        for message in self._waiting:
            self._received(message)
        self._waiting.clear()
        _log.info("worker %d runs %s", setup.number, "compiled" if is_compiled(forward.__file__) else "interpreted")
        self._channel.send(say.Ready(gateway.fleet().version))
        return server

    def _made(self, setup: say.Setup, observing: "Observing | None") -> Gateway:
        siblings = None
        if self._rows is not None:
            self._shared = SharedRows(memoryview(self._rows).cast("q"), self._limits.shared_slots, setup.row)
            self._shared.read_rows(setup.siblings)
        if self._rows is not None or setup.publish:
            self._teller = Teller(
                self._channel, self._loop, self._limits, publish=setup.publish, loads=lambda: gateway.loads()
            )
        if self._shared is not None and self._teller is not None:
            siblings = Siblings(self._shared, self._teller.sent, self._teller.died, self._teller.cleared)
        if setup.indexed:
            self._index = IndexTeller(self._channel, self._loop, self._limits)
        gateway = Gateway(
            clock=self._clock,
            limits=self._limits,
            loop=self._loop,
            secret=setup.secret,
            new_id=RequestIds().next,
            keys=self._keys,
            environ=os.environ,
            memory=memory.reader(self._settings.memory_limit),
            observing=observing,
            siblings=siblings,
            told=self._index.hooks if self._index is not None else None,
            samples=self._index.samples if self._index is not None else None,
            rows=RowTeller(self._channel, self._loop, self._limits),
        )
        gateway.holding.waking = self._tell_waking
        if setup.publish and self._teller is not None:
            gateway.decisions.told = self._teller.decided
        if self._shared is not None:
            self._hearer = Hearer(self._loop, self._limits, gateway.heard)
        return gateway

    def _tell_waking(self, key: str) -> None:
        self._channel.send(say.Waking(key))

    def _observing(self, setup: say.Setup) -> "Observing | None":
        if self._settings.access_log is None and self._settings.trace_endpoint is None:
            return None
        from fairlead_gateway.observing import observing, wanted

        return observing(wanted(self._settings), clock=self._clock, limits=self._limits, instance_id=setup.gateway_id)

    # The channel ---------------------------------------------------------------------------------------------------------

    def _received(self, message: say.ToWorker) -> None:
        if isinstance(message, say.Setup):
            if not self._setup.done():
                self._setup.set_result(message)
        elif isinstance(message, say.Drain):
            self._stop.set()
            if not self._setup.done():
                self._setup.set_result(None)
        elif self._answers is None:
            self._waiting.append(message)
        else:
            self._follow(message, self._answers)

    def _follow(self, message: say.ToWorker, answers: Answers) -> None:
        match message:
            case say.Heard(sent, deaths, cleared):
                if self._hearer is not None and sent is not None:
                    self._hearer.take(sent)
                if self._gateway is not None:
                    for death in deaths:
                        self._gateway.quarantine.heard(*death)
                    for clearing in cleared:
                        self._gateway.quarantine.cleared(*clearing)
            case say.Hot(model, epoch, serving, prefilling):
                if self._gateway is not None:
                    self._gateway.hot(model, epoch, hashes_of(serving), hashes_of(prefilling))
            case say.Corrected():
                if self._gateway is not None:
                    correct(self._gateway, message)
            case say.Profiles(profiles):
                if self._gateway is not None:
                    self._gateway.profiled(profiles)
            case say.Want():
                if self._index is not None:
                    self._index.wanted(message)
            case say.Snapshot(fleet, slots):
                self._place(slots)
                self._apply(fleet)
            case say.Keys(keys):
                if self._keys is not None:
                    self._keys.use(keys)
            case say.Siblings(rows):
                if self._shared is not None:
                    self._shared.read_rows(rows)
            case say.Notes(notes):
                self._notes = notes
            case say.Renew():
                self._start(self._renew())
            case say.AskState() | say.AskCounters() | say.AskDecisions() | say.AskDecision() | say.AskWhere():
                self._start(answers.to(message))
            case _:
                pass

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _place(self, slots: dict[str, int]) -> None:
        """Before their fleet is applied: what it routes to is seen by the siblings from the first request on."""
        if self._shared is not None and self._gateway is not None:
            self._shared.place(slots)
            self._gateway.show_again()

    def _apply(self, fleet: Fleet) -> None:
        """A snapshot that cannot be applied leaves the last one in use."""
        assert self._gateway is not None
        problem = None
        try:
            self._gateway.apply(fleet)
        except FairleadError as error:
            problem = str(error)
        self._channel.send(say.Applied(fleet.version, problem))

    async def _renew(self) -> None:
        if self._certificate is None:
            return
        try:
            await self._certificate.load()
            self._problem = None
        except (FairleadError, OSError, ValueError) as error:
            self._problem = f"the certificate cannot be used, the last good state stays: {error}"
            _log.warning("%s", self._problem)

    def _problems(self) -> list[str]:
        return [*self._notes, *([self._problem] if self._problem is not None else [])]

    def _leave(self) -> None:
        """SIGTERM: go once somebody else listens, which the helper tells; soon in any case, and at once without a helper."""
        if self._answers is not None and self._channel.send(say.Leaving()):
            self._loop.call_later(_LEAVE_SECONDS, self._stop.set)
        else:
            self._stop.set()
            if not self._setup.done():
                self._setup.set_result(None)

    def _lost(self) -> None:
        """The helper is gone."""
        self._gone.set()
        self._stop.set()
        if not self._setup.done():
            self._setup.set_result(None)

    def _last_words(self) -> None:
        if self._teller is not None:
            self._teller.flush()
        if self._answers is not None:
            self._channel.send(self._answers.last())

    async def _closed(self) -> None:
        """Until what was sent has gone out, or nobody reads it."""
        self._channel.close()
        try:
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._gone.wait()
        except TimeoutError:
            pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker until it is told to stop."""
    options = _options(sys.argv[1:] if arguments is None else arguments)
    if "--channel" not in options:
        print("fairlead-gateway-worker: this is started by fairlead-gateway alone", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches every process; the helper decides
    system.more_files()
    system.large_blocks_go_back()
    settings = read(GatewaySettings, os.environ)
    quiet_log.start(settings.log_level)
    rows = mmap.mmap(options["--rows"], 0) if "--rows" in options else None
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_run(settings, rows, options["--channel"]))


def _options(words: Sequence[str]) -> dict[str, int]:
    """``early.spawn`` wrote them: ``--number`` (which of the workers it is), ``--channel`` (the descriptor behind which the helper
    is) and, among siblings, ``--rows`` (that of the memory they share). Nobody types them: no parser for people is loaded."""
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=False) if value.isdigit()}


async def _run(settings: GatewaySettings, rows: mmap.mmap | None, channel: int) -> int:
    return await Worker(settings, Limits(), rows).run(socket.socket(fileno=channel))


if __name__ == "__main__":
    sys.exit(main())

"""The open-loop client: every request leaves at its time, whatever the earlier ones do.

All requests are encoded before the clock starts, and the garbage collector is off while it runs.
Loop lag is measured as in gateway and engines; a run with lag says so in its report.
"""

import asyncio
import gc
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from time import perf_counter

from fairlead.errors import Unavailable
from fairlead.runtime.loop_lag import LoopLag
from fairlead_cli.replay.client.connection import Exchange, ReplayConnection
from fairlead_cli.replay.client.replay_result import ReplayResult

GAVE_UP_ERROR = "no complete answer when the run ended"
_MAX_IDLE_SECONDS = 10.0
_PROGRESS_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """An encoded request and when to send it, in wall seconds from the start."""

    id: str
    due_seconds: float
    prompt_tokens: int
    wire: bytes


@dataclass(frozen=True, slots=True)
class ProgressCounts:
    """Progress of a run."""

    total: int
    sent: int
    answered: int
    failed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ClientRun:
    """The results of a run, in the order planned. All times are wall seconds.

    loop_lag_p99_seconds: None when the run was too short.
    late_p99_seconds: how late the client sent requests.
    """

    results: list[ReplayResult]
    seconds: float
    loop_lag_p99_seconds: float | None
    late_p99_seconds: float


class OpenLoopClient:
    """A client that replays a plan once. Requests without an answer ``patience_seconds`` after the
    last arrival fail.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        patience_seconds: float = 180.0,
        on_progress: Callable[[ProgressCounts], None] = lambda counts: None,
    ) -> None:
        self._host = host
        self._port = port
        self._patience_seconds = patience_seconds
        self._on_progress = on_progress
        self._idle: list[ReplayConnection] = []
        self._open: set[ReplayConnection] = set()
        self._connect_tasks: set[asyncio.Task[None]] = set()
        self._lateness_seconds: dict[int, float] = {}
        self._ended_exchanges: dict[int, tuple[Exchange, float | None]] = {}
        self._planned = self._sent = self._answered = self._failed = 0
        self._given_up = False
        self._start = 0.0
        self._finished: asyncio.Event | None = None
        self._all_closed: asyncio.Event | None = None

    async def run(self, plan: Sequence[PlannedRequest]) -> ClientRun:
        """Sends all requests, waits for their answers and returns the results.

        Raises Unavailable when nothing listens.
        """
        await self._connect_first()
        self._planned = len(plan)
        self._finished = asyncio.Event()
        lag = LoopLag()
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            lag.start()
            await self._send_plan(plan)
        finally:
            lag.stop()
            gc.enable()
            gc.unfreeze()
            await self._close()
        seconds = perf_counter() - self._start
        lateness = sorted(self._lateness_seconds.values())
        return ClientRun(
            results=[self._result(number, request) for number, request in enumerate(plan)],
            seconds=seconds,
            loop_lag_p99_seconds=lag.quantile(0.99),
            late_p99_seconds=lateness[min(len(lateness) - 1, int(0.99 * len(lateness)))] if lateness else 0.0,
        )

    async def _connect_first(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(self._make_connection, self._host, self._port)
        except OSError as error:
            raise Unavailable(
                f"nothing answers at {self._host}:{self._port}: {error.strerror or error}",
                hint="start it with: fairlead up",
            ) from error
        self._add_idle(connection)

    async def _send_plan(self, plan: Sequence[PlannedRequest]) -> None:
        loop = asyncio.get_running_loop()
        assert self._finished is not None
        self._start = perf_counter()
        origin = loop.time()
        for number, request in enumerate(plan):
            loop.call_at(origin + request.due_seconds, self._send, number, request)
        deadline = (plan[-1].due_seconds if plan else 0.0) + self._patience_seconds
        if not plan:
            self._finished.set()
        while not self._finished.is_set():
            self._report_progress(len(plan))
            remaining_seconds = self._start + deadline - perf_counter()
            if remaining_seconds <= 0:
                break
            try:
                await asyncio.wait_for(self._finished.wait(), min(_PROGRESS_SECONDS, remaining_seconds))
            except TimeoutError:
                continue
        self._report_progress(len(plan))

    def _report_progress(self, total: int) -> None:
        self._on_progress(ProgressCounts(total, self._sent, self._answered, self._failed, perf_counter() - self._start))

    def _send(self, number: int, request: PlannedRequest) -> None:
        exchange = Exchange(request.wire, partial(self._on_exchange_done, number))
        self._sent += 1
        now = perf_counter()
        self._lateness_seconds[number] = max(0.0, now - self._start - request.due_seconds)
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_idle:
                continue
            if now - connection.idle_since > _MAX_IDLE_SECONDS:
                connection.close()  # the gateway may be about to close it too
                continue
            connection.send(exchange)
            return
        task = asyncio.get_running_loop().create_task(self._connect(exchange))
        self._connect_tasks.add(task)
        task.add_done_callback(self._connect_tasks.discard)

    async def _connect(self, exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(self._make_connection, self._host, self._port)
        except OSError as error:
            exchange.error = f"cannot connect: {error.strerror or error}"
            exchange.on_done(exchange)
            return
        self._open.add(connection)
        connection.send(exchange)

    def _make_connection(self) -> ReplayConnection:
        return ReplayConnection(self._add_idle, self._remove)

    def _add_idle(self, connection: ReplayConnection) -> None:
        if not connection.idle_since:
            connection.idle_since = perf_counter()
        self._open.add(connection)
        self._idle.append(connection)

    def _remove(self, connection: ReplayConnection) -> None:
        self._open.discard(connection)
        if not self._open and self._all_closed is not None:
            self._all_closed.set()

    def _on_exchange_done(self, number: int, exchange: Exchange) -> None:
        self._ended_exchanges[number] = (exchange, None if self._given_up else perf_counter())
        self._answered += 1
        self._failed += exchange.error is not None
        if self._answered == self._planned and self._finished is not None:
            self._finished.set()

    async def _close(self) -> None:
        self._given_up = True
        for task in list(self._connect_tasks):
            task.cancel()
        await asyncio.gather(*self._connect_tasks, return_exceptions=True)
        for connection in list(self._open):
            connection.close()
        if self._open:
            self._all_closed = asyncio.Event()
            await self._all_closed.wait()

    def _result(self, number: int, request: PlannedRequest) -> ReplayResult:
        """Returns the result; computed after the clock has stopped."""
        result = ReplayResult(
            request.id, request.due_seconds, request.prompt_tokens, late_seconds=self._lateness_seconds.get(number, 0.0)
        )
        if number not in self._ended_exchanges:
            result.error = GAVE_UP_ERROR
            return result
        exchange, end = self._ended_exchanges[number]
        answer = exchange.answer
        result.status = exchange.status
        result.error = GAVE_UP_ERROR if end is None else exchange.error
        result.instance = _decode_header(exchange.headers.get(b"x-fairlead-instance"))
        result.reason = _decode_header(exchange.headers.get(b"x-fairlead-reason"))
        result.cached_tokens = answer.cached_tokens
        result.output_tokens = answer.output_tokens
        if answer.times:
            result.ttft_seconds = answer.times[0] - self._start - request.due_seconds
            result.gaps = array("d", (later - earlier for earlier, later in pairwise(answer.times)))
        if end is not None:
            result.finished_seconds = end - self._start
        return result


def _decode_header(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")

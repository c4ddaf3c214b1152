"""Gateways are restarted one after the other, under short requests and under long streams.

A restart is what a rolling update does: the successor starts and is ready, then the old one gets
SIGTERM. Clients learn of that late: for a moment after the signal the old one is still in the list
that new connections are drawn from. All they forgive is a connection that was refused, since
nothing had been sent; then they take the next address. Every gateway must exit with 0.

- `run_restarts`: clients with kept connections ask without a pause. Everything that is not a whole
  and right answer is an error: a reset, a cut, a 503.
- `run_drains`: a thousand streams, longer and shorter than a drain. Each ends whole, or with the
  error event of a drain and its connection in order. Anything else is counted by name.
- `run_long`: the same with the drain of the product, ten minutes: every stream ends whole.

The engines of the streams send a token a second and are tasks of this process.
"""

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from e2e.soak.gateway_processes import (
    SEED,
    TIMEOUT_SECONDS,
    chat_body,
    check_answer,
    scaled_count,
    start_engines,
    write,
    write_fleet,
)
from fairlead.runtime import process_tuning
from fairlead_testing.engines.scripted import EngineCall, scripted_engine, token
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.reports import ReportLine

CLIENTS = 24
TOKENS = 20
LATE_SECONDS = 0.2  # so long the old one stays in the list
SERVED_SECONDS = 0.5  # so long both serve before the old one goes
RESTARTS = ("FAIRLEAD_SOAK_RESTARTS", 4, 100)
DRAIN_SECONDS, EXIT_SECONDS = 5.0, 120.0
OUTLASTED = "ended with the error event of a drain"

ENGINES = 2
GATEWAYS = 3
ROUNDS = 2
TOKEN_SECONDS = 1.0
"""The time for which clients may still connect to a gateway after its SIGTERM."""
STREAMS = ("FAIRLEAD_SOAK_STREAMS", 60, 1_000)
PATIENCE_SECONDS = 90.0
"""The time that a stream may take beyond its tokens."""
WHOLE = "complete"


class GatewayAddresses:
    """Addresses to which clients may connect, like the endpoints of a Service."""

    def __init__(self, draw: random.Random) -> None:
        self.urls: list[str] = []
        self.refused = 0
        self.signalled: dict[str, float] = {}
        self.errors: list[dict[str, object]] = []
        self._draw = draw

    async def connect(self) -> tuple[RawConnection, str]:
        """A connection to any of them. Raises OSError when none takes one."""
        for url in self._draw.sample(self.urls, len(self.urls)):
            try:
                return await RawConnection.connect(url), url
            except ConnectionRefusedError:
                self.refused += 1
        raise ConnectionRefusedError("no address takes a connection")

    def on_failure(self, kind: str, url: str, asked: int, idle: float) -> None:
        """Prints facts about an error: how the connection was used, and how long ago its gateway
        was asked to stop."""
        told = self.signalled.get(url)
        late = None if told is None else round(time.monotonic() - told, 3)
        found = {"error": kind, "answers_before": asked, "idle_seconds": round(idle, 3), "seconds_after_sigterm": late}
        if len(self.errors) < 20:
            self.errors.append(found)


async def run_client(number: int, addresses: GatewayAddresses, outcomes: Counter[str], done: asyncio.Event) -> None:
    """Ask again and again over one connection until it is said to end, then over the next."""
    connection: RawConnection | None = None
    turn, asked, url, last, idle = number, 0, "", 0.0, 0.0
    while not done.is_set():
        turn += CLIENTS
        body = chat_body(turn, stream=number % 2 == 0, tokens=TOKENS, greedy=False)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                if connection is None:
                    connection, url = await addresses.connect()
                    asked, last = 0, time.monotonic()
                idle = time.monotonic() - last
                connection.writer.write(post_request(body, close=False))
                await connection.writer.drain()
                answer = await connection.read_response()
        except TimeoutError:
            outcomes["hangs"] += 1
            connection = None
            continue
        except (OSError, asyncio.IncompleteReadError) as error:
            outcomes[f"no answer: {type(error).__name__}"] += 1
            addresses.on_failure(type(error).__name__, url, asked, idle)
            connection = None
            continue
        asked, last = asked + 1, time.monotonic()
        outcomes[check_answer(answer, TOKENS)[0]] += 1
        if answer.fields.get("connection") == "close":
            await connection.close()
            connection = None
    if connection is not None:
        await connection.close()


async def run_restarts(folder: Path) -> list[ReportLine]:
    """The part; the lines that do not hold."""
    begun, restarts = time.monotonic(), scaled_count(*RESTARTS)
    outcomes: Counter[str] = Counter()
    addresses, done = GatewayAddresses(random.Random(SEED)), asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        found = await stack.enter_async_context(
            start_engines(4, "--model", "tiny", "--served-model-name", "tiny", "--speed", "2")
        )
        write_fleet(folder / "fleet.yaml", found.urls)
        gateways = GatewayFleet(stack, folder / "fleet.yaml", f"{DRAIN_SECONDS:g}s", addresses)
        for _ in range(2):
            await gateways.start()
        clients = asyncio.gather(*(run_client(number, addresses, outcomes, done) for number in range(CLIENTS)))
        for _ in range(restarts):
            await gateways.restart_oldest(EXIT_SECONDS, SERVED_SECONDS)
        ended = Counter(await asyncio.gather(*gateways.codes))
        done.set()
        await clients
    codes = gateways.codes
    errors = {name: number for name, number in outcomes.items() if name != "complete"}
    lines = [
        ReportLine(f"{restarts} rolling restarts of gateways", len(codes), len(codes) == restarts),
        ReportLine("0 errors", errors, not errors),
        ReportLine(
            "every gateway drained and exited with 0",
            {str(code): number for code, number in ended.items()},
            set(ended) == {0},
        ),
    ]
    figures = {
        "restarts": restarts,
        "requests": outcomes.total(),
        "refused_before_anything_was_sent": addresses.refused,
        "details": addresses.errors,
    }
    return write("rolling_restarts", begun, figures, lines)


@dataclass(frozen=True, slots=True)
class DrainScenario:
    """One scenario.

    part: its name in the report.
    drain: of the gateways, as in FAIRLEAD_DRAIN_TIMEOUT.
    tokens: the fewest and the most tokens of a stream, a second each.
    rounds: how often all gateways are restarted.
    repeats: clients ask again until the last restart; else each asks once, before the first.
    """

    part: str
    drain: str
    tokens: tuple[int, int]
    rounds: int
    repeats: bool


SHORT = DrainScenario("drain", "4s", (2, 24), ROUNDS, repeats=True)
LONG = DrainScenario("drain_ten_minutes", "10m", (540, 585), 1, repeats=False)


async def send_tokens(call: EngineCall) -> None:
    """Answers a stream with a token a second, and a probe with nothing."""
    if not call.body:
        await call.respond({})
        return
    await call.start_stream()
    count, clock = call.json["max_tokens"], asyncio.get_running_loop().time
    begun = clock()
    for number in range(count):
        await call.event(token("a", "length" if number == count - 1 else None))
        if number < count - 1:  # by the clock, so that a late token does not delay all after it
            await asyncio.sleep(begun + (number + 1) * TOKEN_SECONDS - clock())
    await call.finish()


class StreamClients:
    """The clients, and how their streams ended."""

    def __init__(self, scenario: DrainScenario, addresses: GatewayAddresses, draw: random.Random) -> None:
        self.outcomes: Counter[str] = Counter()
        self.open = 0
        self.sent = 0
        self._scenario = scenario
        self._addresses = addresses
        self._draw = draw
        self._is_over = False

    async def run_clients(self, count: int) -> None:
        """Runs clients until `stop` and the end of their streams."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                tasks.create_task(self._client())

    def stop(self) -> None:
        self._is_over = True

    async def _client(self) -> None:
        while not self._is_over:
            tokens = self._draw.randint(*self._scenario.tokens)
            self.sent += 1
            self.open += 1
            self.outcomes[await self._stream(self.sent, tokens)] += 1
            self.open -= 1
            if not self._scenario.repeats:
                return

    async def _stream(self, number: int, tokens: int) -> str:
        body = chat_body(number, stream=True, tokens=tokens, greedy=False)
        try:
            connection, _ = await self._addresses.connect()
            return await _read_stream(connection, body, tokens)
        except TimeoutError:
            return "hangs"
        except (OSError, asyncio.IncompleteReadError) as error:
            return f"no answer: {type(error).__name__}"


async def _read_stream(connection: RawConnection, body: dict[str, object], tokens: int) -> str:
    """Returns how the stream ended."""
    try:
        await connection.send(post_request(body, close=False))
        answer = await connection.read_response(patience_seconds=tokens * TOKEN_SECONDS + PATIENCE_SECONDS)
        verdict, _ = check_answer(answer, tokens)
        if verdict != "ended with an error event":
            return verdict
        if '"gateway_draining"' not in answer.events[-1]:
            return "ended with another error event"
        after = await connection.reader.read()
        return OUTLASTED if answer.complete and not after else "closed out of order"
    finally:
        connection.writer.transport.abort()


class GatewayFleet:
    """Gateways that are restarted one after the other.

    codes: how each that was stopped exited.
    """

    def __init__(self, stack: contextlib.AsyncExitStack, fleet: Path, drain: str, addresses: GatewayAddresses) -> None:
        self.codes: list[asyncio.Task[int]] = []
        self._stack = stack
        self._fleet = fleet
        self._environ = {**os.environ, "FAIRLEAD_DRAIN_TIMEOUT": drain}
        self._addresses = addresses
        self._living: list[GatewayProcess] = []

    async def start(self) -> None:
        """Starts a gateway and lists its address."""
        gateway = await self._stack.enter_async_context(gateway_process(self._fleet, environ=self._environ))
        self._living.append(gateway)
        self._addresses.urls.append(gateway.url)

    async def restart_oldest(self, patience_seconds: float, both_seconds: float = 0.0) -> None:
        """Starts a gateway and stops the oldest, whose address stays listed a moment longer.

        both_seconds: for which both serve.
        """
        await self.start()
        old = self._living.pop(0)
        await asyncio.sleep(both_seconds)
        self._addresses.signalled[old.url] = time.monotonic()
        old.process.terminate()
        await asyncio.sleep(LATE_SECONDS)
        self._addresses.urls.remove(old.url)
        self.codes.append(asyncio.create_task(asyncio.wait_for(old.process.wait(), patience_seconds)))


async def run_drains(folder: Path) -> list[ReportLine]:
    return await _run(folder, SHORT)


async def run_long(folder: Path) -> list[ReportLine]:
    return await _run(folder, LONG)


async def _run(folder: Path, scenario: DrainScenario) -> list[ReportLine]:
    begun, count = time.monotonic(), scaled_count(*STREAMS)
    process_tuning.raise_open_file_limit()
    patience_seconds = scenario.tokens[1] * TOKEN_SECONDS + PATIENCE_SECONDS
    addresses = GatewayAddresses(random.Random(SEED))
    clients = StreamClients(scenario, addresses, random.Random(SEED + 1))
    open_at_restarts = []
    async with contextlib.AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(scripted_engine(send_tokens)) for _ in range(ENGINES)]
        write_fleet(folder / "fleet.yaml", [engine.url for engine in engines])
        gateways = GatewayFleet(stack, folder / "fleet.yaml", scenario.drain, addresses)
        for _ in range(GATEWAYS):
            await gateways.start()
        streaming = asyncio.create_task(clients.run_clients(count))
        await asyncio.sleep(3 * TOKEN_SECONDS)
        for _ in range(GATEWAYS * scenario.rounds):
            open_at_restarts.append(clients.open)
            await gateways.restart_oldest(patience_seconds)
        clients.stop()
        await streaming
        codes = Counter(await asyncio.gather(*gateways.codes))
    figures = {
        "streams_at_once": count,
        "gateways": GATEWAYS,
        "drain": scenario.drain,
        "streams": clients.sent,
        "streams_open_at_each_restart": open_at_restarts,
        "outcomes": dict(sorted(clients.outcomes.items())),
        "refused_before_anything_was_sent": addresses.refused,
    }
    lines = _verdict(scenario, clients.outcomes, open_at_restarts, codes)
    return write(scenario.part, begun, figures, lines)


def _verdict(
    scenario: DrainScenario, outcomes: Counter[str], open_at_restarts: list[int], codes: Counter[int]
) -> list[ReportLine]:
    permitted = {WHOLE, OUTLASTED} if scenario.repeats else {WHOLE}
    bad = {name: number for name, number in outcomes.items() if name not in permitted}
    cut = outcomes["cut silently"] + outcomes["looks complete and is not"]
    lines = [
        ReportLine("0 silent cuts", cut, not cut),
        ReportLine(f"every stream ended {' or '.join(sorted(permitted))}", bad, not bad),
        ReportLine(
            f"{GATEWAYS} gateways were restarted {scenario.rounds} times under streams",
            open_at_restarts,
            len(open_at_restarts) == GATEWAYS * scenario.rounds and min(open_at_restarts) > 0,
        ),
        ReportLine(
            "every gateway drained and exited with 0",
            {str(code): number for code, number in codes.items()},
            set(codes) == {0},
        ),
    ]
    if scenario.repeats:
        outlasted = outcomes[OUTLASTED]
        lines.append(ReportLine("streams outlasted their gateway's drain", outlasted, outlasted > 0))
    return lines

"""Gateways are restarted one after the other while clients with kept connections ask without a
pause.

A restart is what a rolling update does: the successor starts and is ready, then the old one gets
SIGTERM. Clients learn of that late: for a moment after the signal the old one is still in the list
that new connections are drawn from. All they forgive is a connection that was refused, since
nothing had been sent; then they take the next address. Everything else that is not a whole and
right answer is an error: a reset, a cut, a 503. Every gateway must exit with 0.

Some streams of each gateway last longer than its drain. Each must end with the error event of a
drain, and its connection in order.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from pathlib import Path

from e2e.soak.forked_engines import start_engines
from e2e.soak.gateway_processes import (
    TIMEOUT_SECONDS,
    GatewayProcess,
    chat_body,
    check_answer,
    start_gateway,
    write_fleet,
)
from e2e.soak.report import SEED, scaled_count, write
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.reports import ReportLine

CLIENTS = 24
TOKENS = 20
LATE_SECONDS = 0.2  # so long the old one stays in the list
SERVED_SECONDS = 0.5  # so long both serve before the old one goes
RESTARTS = ("FAIRLEAD_SOAK_RESTARTS", 4, 100)
DRAIN_SECONDS = 5.0
LONG_STREAMS = 2
"""Streams of each restarted gateway that last longer than its drain."""
LONG_TOKENS = 30_000
OUTLASTED = "ended with the error event of a drain"


class GatewayAddresses:
    """Addresses to which clients may connect, like the endpoints of a Service."""

    def __init__(self, draw: random.Random) -> None:
        self.urls: list[str] = []
        self.refused = 0
        self.signalled: dict[str, float] = {}
        self.errors: list[dict[str, object]] = []
        self.long_streams: list[asyncio.Task[str]] = []
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


async def outlast_drain(url: str, number: int) -> str:
    """Asks for a stream that lasts longer than the drain of its gateway; returns how it ended."""
    body = chat_body(number, stream=True, tokens=LONG_TOKENS, greedy=False)
    try:
        async with asyncio.timeout(DRAIN_SECONDS + TIMEOUT_SECONDS):
            connection = await RawConnection.connect(url)
            await connection.send(post_request(body, close=False))
            answer = await connection.read_response()
            after = await connection.reader.read()
            await connection.close()
    except TimeoutError:
        return "hangs"
    except (OSError, asyncio.IncompleteReadError) as error:
        return f"no answer: {type(error).__name__}"
    verdict, _ = check_answer(answer, LONG_TOKENS)
    if verdict != "ended with an error event" or '"gateway_draining"' not in answer.events[-1]:
        return verdict
    return OUTLASTED if answer.complete and not after else "closed out of order"


async def start_draining_gateway(fleet: Path) -> GatewayProcess:
    """A gateway with the drain of this part."""
    return await start_gateway(fleet, environ={"FAIRLEAD_DRAIN_TIMEOUT": f"{DRAIN_SECONDS:g}s"})


async def restart_gateway(
    old: GatewayProcess, fleet: Path, addresses: GatewayAddresses
) -> tuple[GatewayProcess, "asyncio.Task[int]"]:
    """The successor, and the end of the old one."""
    new = await start_draining_gateway(fleet)
    addresses.urls.append(new.url)
    addresses.long_streams += [asyncio.create_task(outlast_drain(old.url, number)) for number in range(LONG_STREAMS)]
    await asyncio.sleep(SERVED_SECONDS)
    addresses.signalled[old.url] = time.monotonic()
    old.terminate()
    await asyncio.sleep(LATE_SECONDS)
    addresses.urls.remove(old.url)
    return new, asyncio.create_task(old.wait())


async def run(folder: Path) -> list[ReportLine]:
    """The part; the lines that do not hold."""
    begun, restarts = time.monotonic(), scaled_count(*RESTARTS)
    outcomes: Counter[str] = Counter()
    addresses, done = GatewayAddresses(random.Random(SEED)), asyncio.Event()
    codes: list[asyncio.Task[int]] = []
    async with contextlib.AsyncExitStack() as stack:
        found = await stack.enter_async_context(
            start_engines(4, "--model", "tiny", "--served-model-name", "tiny", "--speed", "2")
        )
        write_fleet(folder / "fleet.yaml", found.urls)
        living = [await start_draining_gateway(folder / "fleet.yaml") for _ in range(2)]
        stack.push_async_callback(_stop_all, living)
        addresses.urls += [one.url for one in living]
        clients = asyncio.gather(*(run_client(number, addresses, outcomes, done) for number in range(CLIENTS)))
        for number in range(restarts):
            living[number % 2], code = await restart_gateway(living[number % 2], folder / "fleet.yaml", addresses)
            codes.append(code)
        ended = Counter(await asyncio.gather(*codes))
        outlasting = Counter(await asyncio.gather(*addresses.long_streams))
        done.set()
        await clients
    errors = {name: number for name, number in outcomes.items() if name != "complete"}
    lines = [
        ReportLine(f"{restarts} rolling restarts of gateways", len(codes), len(codes) == restarts),
        ReportLine("0 errors", errors, not errors),
        ReportLine(
            "every stream that outlasted a drain ended with its error event",
            dict(outlasting),
            outlasting == {OUTLASTED: restarts * LONG_STREAMS},
        ),
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


async def _stop_all(living: list[GatewayProcess]) -> None:
    for one in living:
        if one.process.returncode is None:
            one.process.kill()
        await one.process.wait()

"""Scenarios of the soak: engine deaths, malformed requests, a million requests, limits of tenants.

Engines that die under load: each time one that has just answered, so that it has work.

Half of the requests are greedy streams, which another engine can continue. A quarter are streams
that none can continue, and a quarter are plain. A request that had not begun must be answered
whole. Engines come back at once on the same port.

The next engine dies when all requests of the last death are over. A request that meets two deaths
counts as their cause and is refused (row 17 of docs/reference/faults.md), as it should be.

Malformed requests by the hundred thousand, each on a connection of its own: mutations of the
fuzzers' corpora, sent to a process.

None may be answered 5xx, none may end the process or make it grow, and none may hold its loop. What
is not malformed any more, since mutations sometimes repair each other, is answered by a simulated
engine.

A million requests through one gateway, from the benchmark's load generator to its mock engines:
memory stays what it was.

In full every prompt ends differently, so that every bounded table fills: that is the first third,
and from there on nothing may grow.

Limits of two tenants over three gateways, minute by minute, while parts of the system die.

Traffic and faults are those of the benchmark `quota`.
"""

import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from e2e.soak.gateway_processes import (
    FULL,
    ROOT,
    SEED,
    TIMEOUT_SECONDS,
    chat_body,
    is_flat,
    scaled_count,
    send_request,
    start_engines,
    write,
    write_fleet,
)
from fairlead_bench.gateway.load_cases import UNIQUE, make_bodies
from fairlead_bench.gateway.native_programs import MockEngine, build
from fairlead_bench.gateway.target_process import tree_usage
from fairlead_bench.quota.gateway_faults import (
    CLIENTS,
    FAULTS,
    REQUESTS,
    TOKENS,
    ledger_difference,
    measure,
    per_minute,
)
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.reports import ReportLine

sys.path.insert(0, str(ROOT / "tests" / "fuzz"))
from fuzzing.mutate import Mutator
from fuzzing.targets import TARGETS

ENGINES = 8
KILL_TOKENS = 40
PER_SECOND = 100.0
KILL_SECONDS = 0.45
_KNOWN = ("complete", "ended with an error event")
KILLS = ("FAIRLEAD_SOAK_KILLS", 12, 1_000)

LANES = 8
SAMPLES = 12
MAX_DELAY_SECONDS = 0.020
WARM = 5_000 if FULL else 400
MALFORMED = ("FAIRLEAD_SOAK_MALFORMED", 4_000, 100_000)
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Z]")
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/rerank", "/v1/odd")

VOLUME_ENGINES = 2
CONNECTIONS = 64
STREAMED = 4  # every fourth stretch of the load is streams
EVENTS = 8
SECONDS = 5.0 if FULL else 1.0
VOLUME = ("FAIRLEAD_SOAK_REQUESTS", 20_000, 1_000_000)
VOLUME_WARM = 15_000
"""Requests before memory is looked at. While tables fill, it grows (99 to 111 MB, then 108 to 114
for 150,000 requests). A fast machine needs two stretches for them, a busy one five."""
VOLUME_SAMPLES = 6
"""The least number of stretches after that, however fast the machine is."""

TOKEN_SHARE = 0.02
LEDGER_SHARE = 0.001


async def ask_chat(url: str, number: int) -> tuple[str, str, str]:
    """Returns a verdict on the answer to a chat, its text if it is greedy, and the instance."""
    greedy = number % 4 < 2
    body = chat_body(number, stream=number % 4 != 3, tokens=KILL_TOKENS, greedy=greedy)
    outcome, text, instance = await send_request(url, body)
    return outcome, text if greedy else "", instance


class RequestLoad:
    """Open-loop requests, and what came of them.

    ask: sends the request of a number; returns the verdict on its answer, a text that is that of
        all requests with this number modulo 40, and the instance.
    """

    def __init__(
        self,
        url: str,
        ask: Callable[[str, int], Awaitable[tuple[str, str, str]]] = ask_chat,
        per_second: float = PER_SECOND,
        known: Collection[str] = _KNOWN,
    ) -> None:
        self._url = url
        self._ask = ask
        self._per_second = per_second
        self._known = known
        self._begun = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self.outcomes: Counter[str] = Counter()
        self.texts: dict[int, set[str]] = {}
        self.busy: list[str] = []
        self.strange: list[dict[str, object]] = []
        self.kills = 0
        self.sent = 0

    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def under_way(self) -> "list[asyncio.Task[None]]":
        return list(self._tasks)

    async def run(self, done: asyncio.Event) -> None:
        """Send until ``done``, then wait for all answers."""
        begun = self._begun
        while not done.is_set():
            while self.sent < (time.monotonic() - begun) * self._per_second:
                task = asyncio.create_task(self._one(self.sent))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                self.sent += 1
            await asyncio.sleep(0.005)
        await asyncio.gather(*self._tasks)

    async def _one(self, number: int) -> None:
        outcome, text, instance = await self._ask(self._url, number)
        self.outcomes[outcome] += 1
        if outcome == "complete" and text:
            self.texts.setdefault(number % 40, set()).add(text)
        if outcome not in self._known and len(self.strange) < 20:
            self.strange.append(
                {"outcome": outcome, "request": number, "kills": self.kills, "seconds": round(self.seconds(), 2)}
            )
        if instance.startswith("e-"):
            self.busy.append(instance)
            del self.busy[:-20]


_Metrics = TypeVar("_Metrics")


async def load_and_kill(
    folder: Path,
    load_of: Callable[[str], RequestLoad],
    read: Callable[[GatewayProcess], Awaitable[_Metrics]],
    gap_seconds: float = KILL_SECONDS,
    arguments: Sequence[str] = (),
    *,
    resumes: bool = True,
) -> tuple[RequestLoad, _Metrics]:
    """Kills engines behind a gateway while the load at its URL runs, and reads its metrics.

    Each time one that has just answered is killed, and then brought back.

    arguments: more of the engines.
    resumes: streams that break may go on at another engine.
    """
    named = ("--model", "tiny", "--served-model-name", "tiny", "--speed", "1")
    draw, met = random.Random(SEED), list[asyncio.Task[None]]()
    async with start_engines(ENGINES, *named, *arguments) as found:
        write_fleet(folder / "fleet.yaml", found.urls, resumes=resumes)
        async with gateway_process(folder / "fleet.yaml") as running:
            load, done = load_of(running.url), asyncio.Event()
            loading = asyncio.create_task(load.run(done))
            for _ in range(scaled_count(*KILLS)):
                await asyncio.sleep(gap_seconds)
                await asyncio.gather(*met)
                met = load.under_way()
                names = [name for name in load.busy if int(name[2]) in found.running]
                number = int(draw.choice(names)[2]) if names else draw.choice(list(found.running))
                found.kill(number)
                load.kills = found.kills
                await found.start(number)
            done.set()
            await loading
            return load, await read(running)


async def _continued(running: GatewayProcess) -> dict[str, int]:
    return {
        how: int(sum(await running.samples("fairlead_gateway_continued_total", f'result="{how}"')))
        for how in ("whole", "broken")
    }


async def run_engine_kills(folder: Path) -> list[ReportLine]:
    """The part; the lines that do not hold."""
    begun, kills = time.monotonic(), scaled_count(*KILLS)
    load, continued = await load_and_kill(folder, RequestLoad, _continued)
    seen = load.outcomes
    lost = {name: number for name, number in seen.items() if name not in _KNOWN}
    untrue = seen["looks complete and is not"] + seen["cut silently"]
    different = sum(len(texts) > 1 for texts in load.texts.values())
    lines = [
        ReportLine(f"{kills} engine kills under load", load.kills, load.kills == kills),
        ReportLine(
            "0 lost requests that had not started",
            lost,
            not any(name.startswith(("status", "no answer")) for name in lost),
        ),
        ReportLine("0 hangs", seen["hangs"], not seen["hangs"]),
        ReportLine("0 streams that look complete and are not", untrue, not untrue),
        ReportLine("greedy answers of one conversation are one text, continued or not", different, not different),
    ]
    figures = {
        "kills": load.kills,
        "requests": seen.total(),
        "outcomes": dict(sorted(seen.items())),
        "details": load.strange,
        "continued": continued,
    }
    return write("engine_kills", begun, figures, lines)


class ValidRequests:
    """Right requests: so many fill the tables that are bounded, before memory is looked at."""

    def __init__(self) -> None:
        self._number = 0

    def next(self) -> bytes:
        """One more, unlike the others."""
        self._number += 1
        return post_request(
            {"model": "tiny", "messages": [{"role": "user", "content": f"{self._number} hi"}], "max_tokens": 1}
        )


class MalformedRequests:
    """Requests of three kinds: bytes on the wire, bodies in a right head, and right requests with a
    few bytes changed."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._wire, self._body = (
            Mutator(f"{seed}", target.seeds, target.words, target.pieces, target.grow)
            for target in (TARGETS["head"], TARGETS["splice"])
        )

    def next(self) -> bytes:
        """Returns the bytes of one more request."""
        draw = self._draw
        kind = draw.random()
        if kind < 0.4:
            return bytes(self._wire.next())
        if kind < 0.8:
            return post_request(self._body.next(), path=draw.choice(_PATHS))
        good = bytearray(
            post_request({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
        )
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(good))
            good[at : at + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 3))
        return bytes(good)


async def send_lane(url: str, hostile: "MalformedRequests | ValidRequests", share: int, seen: Counter[int]) -> None:
    """Send, close our side, read what comes until the other side closes too; 0 is no answer, -1 no
    end of it."""
    for _ in range(share):
        connection = await RawConnection.connect(url)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await connection.send(hostile.next())
                connection.writer.write_eof()
                found = _STATUS.findall(await connection.reader.read())
                seen.update(map(int, found or [0]))
        except ConnectionError:
            seen[0] += 1
        except TimeoutError:
            seen[-1] += 1
        finally:
            connection.writer.transport.abort()


async def worst_lag(running: GatewayProcess) -> float:
    """Returns the longest delay of the gateway's event loop within the last minute, in seconds."""
    return max(await running.samples("fairlead_gateway_loop_lag_seconds", 'quantile="1"'), default=0.0)


async def run_malformed(folder: Path) -> list[ReportLine]:
    """The part; the lines that do not hold."""
    begun, requests = time.monotonic(), scaled_count(*MALFORMED)
    seen: Counter[int] = Counter()
    sizes: list[int] = []
    async with start_engines(1, "--model", "tiny", "--served-model-name", "tiny", "--speed", "50") as found:
        write_fleet(folder / "fleet.yaml", found.urls)
        async with gateway_process(folder / "fleet.yaml") as running:
            good = ValidRequests()
            await asyncio.gather(*(send_lane(running.url, good, WARM // LANES, Counter()) for _ in range(LANES)))
            hostile, late = MalformedRequests(SEED), [await worst_lag(running)]
            for _ in range(SAMPLES):
                share = requests // SAMPLES // LANES + 1
                await asyncio.gather(*(send_lane(running.url, hostile, share, seen) for _ in range(LANES)))
                sizes.append(tree_usage(running.process.pid).rss_bytes)
                late.append(await worst_lag(running))
            alive = running.process.returncode is None and (await running.get("/readyz")).status == 200
    bad = {str(status): number for status, number in sorted(seen.items()) if status >= 500}
    lines = [
        ReportLine(f"{requests} malformed requests: 0 5xx", bad, not bad),
        ReportLine("0 crashes", int(not alive), alive),
        ReportLine("0 hangs", seen[-1], not seen[-1]),
        ReportLine(
            "loop stall at most 20 ms (the latest that the loop ever woke, seconds)",
            round(max(late), 4),
            max(late) <= MAX_DELAY_SECONDS or not FULL,  # among other tests the machine is busy with other things
        ),
        ReportLine("memory flat", sizes, is_flat(sizes)),
    ]
    statuses = {str(status): number for status, number in sorted(seen.items())}
    return write("malformed", begun, {"requests": requests, "statuses": statuses}, lines)


async def run_volume(folder: Path) -> list[ReportLine]:
    """The part; the lines that do not hold."""
    begun, requests = time.monotonic(), scaled_count(*VOLUME)
    programs = build()
    files = [_bodies(folder, stream) for stream in (False, True)]
    totals = {"requests": 0, "errors": 0, "wrong": 0, "unfinished": 0, "events": 0}
    sizes: list[int] = []
    stretches = count()
    with MockEngine(programs.engine, ports=VOLUME_ENGINES) as mock:
        mock.set_pace(0)
        write_fleet(folder / "fleet.yaml", [f"http://127.0.0.1:{port}" for port in mock.ports], model="bench-model")
        async with gateway_process(folder / "fleet.yaml") as running:
            while totals["requests"] < requests or len(sizes) < VOLUME_SAMPLES:
                number = next(stretches)
                stream = number % STREAMED == STREAMED - 1
                found = _load(programs.load, running.url, files[stream], stream, number)
                for name in totals:
                    totals[name] += int(found[name])
                if totals["requests"] >= VOLUME_WARM:
                    sizes.append(tree_usage(running.process.pid).rss_bytes)
        left = mock.stats()["open"]
    bad = {name: totals[name] for name in ("errors", "wrong", "unfinished") if totals[name]}
    lines = [
        ReportLine(f"{requests:,} requests, every answer whole and right", bad, not bad),
        ReportLine("memory flat", sizes, is_flat(sizes)),
        ReportLine("no stream is left at the engines", left, not left),
    ]
    return write("volume", begun, {**totals, "unique_prompts": FULL}, lines)


def _bodies(folder: Path, stream: bool) -> Path:
    """2 KB prompts as a file; each is new in full, and the same few again in a small run, whose
    tables would not fill."""
    path = folder / f"bodies-{stream}"
    lines = make_bodies(2_048, count=64, seed=SEED, max_tokens=EVENTS if stream else 16, stream=stream)
    path.write_text("".join(f"{line if FULL else line.replace(UNIQUE, 'x' * len(UNIQUE))}\n" for line in lines))
    return path


def _load(program: Path, url: str, file: Path, stream: bool, number: int) -> dict[str, Any]:
    command = [str(program), "closed", "--port", url.rpartition(":")[2], "--bodies", str(file), "--warmup", "0"]
    command += ["--connections", str(CONNECTIONS), "--seconds", str(SECONDS), "--seed", str(SEED * 1_000 + number)]
    command += ["--events", str(EVENTS)] if stream else []
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


async def run_tenant_limits(folder: Path) -> list[ReportLine]:
    """The part; the lines that do not hold."""
    begun = time.monotonic()
    found = await measure(folder, SEED)
    requests = [(answers, answers + cut) for answers, _, cut in per_minute(found, "counted")]
    tokens = [used for _, used, _ in per_minute(found, "metered")]
    apart = ledger_difference(found, with_unwritten=False)
    lines = [
        ReportLine(
            "requests of each minute within one of the limit",
            requests,
            all(answers <= REQUESTS + 1 and with_cut >= REQUESTS - 1 for answers, with_cut in requests),
        ),
        ReportLine(
            "tokens of each minute within 2 % of the limit",
            tokens,
            all(abs(used - TOKENS) <= TOKEN_SHARE * TOKENS for used in tokens),
        ),
        ReportLine("ledger = engines' reported usage ± 0.1 %", round(apart, 6), abs(apart) <= LEDGER_SHARE),
    ]
    figures = {
        "streams_at_once": 2 * CLIENTS,
        "limits": {"requests": REQUESTS, "tokens": TOKENS},
        "faults": list(FAULTS),
        "statuses": {tenant: count.statuses for tenant, count in found.counts.items()},
        "cut": {tenant: len(count.cut) for tenant, count in found.counts.items()},
        "ledger_apart_with_the_last_seconds_of_the_killed_gateway": round(
            ledger_difference(found, with_unwritten=True), 6
        ),
    }
    return write("tenant limits", begun, figures, lines)

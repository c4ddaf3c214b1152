"""Malformed requests by the hundred thousand, each on a connection of its own: mutations of the
fuzzers' corpora, sent to a process.

None may be answered 5xx, none may end the process or make it grow, and none may hold its loop. What
is not malformed any more, since mutations sometimes repair each other, is answered by a simulated
engine.
"""

import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from e2e.soak.gateway_processes import (
    FULL,
    ROOT,
    SEED,
    TIMEOUT_SECONDS,
    GatewayProcess,
    get_management,
    is_flat,
    metric,
    resident_bytes,
    running_gateway,
    scaled_count,
    start_engines,
    write,
    write_fleet,
)
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.reports import ReportLine

sys.path.insert(0, str(ROOT / "tests" / "fuzz"))
from fuzzing.mutate import Mutator
from fuzzing.targets import TARGETS

LANES = 8
SAMPLES = 12
MAX_DELAY_SECONDS = 0.020
WARM = 5_000 if FULL else 400
REQUESTS = ("FAIRLEAD_SOAK_MALFORMED", 4_000, 100_000)
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Z]")
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/rerank", "/v1/odd")


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
            return self._wire.next()
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


@asynccontextmanager
async def run_probe(url: str) -> AsyncIterator[dict[str, float]]:
    """Measures the wait of an unrelated client; the dictionary is filled at the end."""
    waits: dict[str, float] = {}
    parts = urlsplit(url)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).parent / "readyz_probe.py"), str(parts.hostname), str(parts.port)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield waits
        said, _ = await process.communicate(b"")  # closes its input
        waits.update(json.loads(said))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def worst_lag(running: GatewayProcess) -> float:
    """Returns the longest delay of the gateway's event loop within the last minute, in seconds."""
    return max(await metric(running, "fairlead_gateway_loop_lag_seconds", 'quantile="1"'), default=0.0)


async def run(folder: Path) -> list[ReportLine]:
    """The part; the lines that do not hold."""
    begun, requests = time.monotonic(), scaled_count(*REQUESTS)
    seen: Counter[int] = Counter()
    sizes: list[int] = []
    async with start_engines(1, "--model", "tiny", "--served-model-name", "tiny", "--speed", "50") as found:
        write_fleet(folder / "fleet.yaml", found.urls)
        async with running_gateway(folder / "fleet.yaml") as running:
            good = ValidRequests()
            await asyncio.gather(*(send_lane(running.url, good, WARM // LANES, Counter()) for _ in range(LANES)))
            hostile, late = MalformedRequests(SEED), [await worst_lag(running)]
            async with run_probe(running.url) as waits:
                for _ in range(SAMPLES):
                    share = requests // SAMPLES // LANES + 1
                    await asyncio.gather(*(send_lane(running.url, hostile, share, seen) for _ in range(LANES)))
                    sizes.append(resident_bytes(running.pid))
                    late.append(await worst_lag(running))
            alive = running.process.returncode is None and (await get_management(running, "/readyz")).status == 200
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
    figures = {
        "requests": requests,
        "statuses": {str(status): number for status, number in sorted(seen.items())},
        "bystander_waits_seconds": waits,
    }
    return write("malformed", begun, figures, lines)

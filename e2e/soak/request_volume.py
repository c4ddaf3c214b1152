"""A million requests through one gateway, from the benchmark's load generator to its mock engines:
memory stays what it was.

In full every prompt ends differently, so that every bounded table fills: that is the first third,
and from there on nothing may grow.
"""

import json
import subprocess
import time
from itertools import count
from pathlib import Path
from typing import Any

from e2e.soak.gateway_processes import (
    FULL,
    SEED,
    is_flat,
    resident_bytes,
    running_gateway,
    scaled_count,
    write,
    write_fleet,
)
from fairlead_bench.gateway.load_cases import UNIQUE, make_bodies
from fairlead_bench.gateway.native_programs import MockEngine, build
from fairlead_testing.reports import ReportLine

ENGINES = 2
CONNECTIONS = 64
STREAMED = 4  # every fourth stretch of the load is streams
EVENTS = 8
SECONDS = 5.0 if FULL else 1.0
REQUESTS = ("FAIRLEAD_SOAK_REQUESTS", 20_000, 1_000_000)
WARM = 15_000
"""Requests before memory is looked at. While tables fill, it grows (99 to 111 MB, then 108 to 114
for 150,000 requests). A fast machine needs two stretches for them, a busy one five."""
SAMPLES = 6
"""The least number of stretches after that, however fast the machine is."""


async def run(folder: Path) -> list[ReportLine]:
    """The part; the lines that do not hold."""
    begun, requests = time.monotonic(), scaled_count(*REQUESTS)
    programs = build()
    files = [_bodies(folder, stream) for stream in (False, True)]
    totals = {"requests": 0, "errors": 0, "wrong": 0, "unfinished": 0, "events": 0}
    sizes: list[int] = []
    stretches = count()
    with MockEngine(programs.engine, ports=ENGINES) as mock:
        mock.set_pace(0)
        write_fleet(folder / "fleet.yaml", [f"http://127.0.0.1:{port}" for port in mock.ports], model="bench-model")
        async with running_gateway(folder / "fleet.yaml") as running:
            while totals["requests"] < requests or len(sizes) < SAMPLES:
                number = next(stretches)
                stream = number % STREAMED == STREAMED - 1
                found = _load(programs.load, running.url, files[stream], stream, number)
                for name in totals:
                    totals[name] += int(found[name])
                if totals["requests"] >= WARM:
                    sizes.append(resident_bytes(running.pid))
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

"""Long prompts on processes: time to first token with `routing.defragment` and without it.

    python -m fairlead_bench defragmentation [--out FILE] [--seconds 560] [--seeds 101]

Eight simulated engines of 28,672 tokens (l4-qwen8b) run behind a gateway; all are processes. Chats
come 1.95 times a second and fill about 85 % of the memory. From 150 s on, a prompt of 12,000 tokens
comes every 40 s. It is compared with the same prompt at an empty engine, whose time the profile
states.

Engines learn the length of an answer from `min_tokens`, which the gateway does not look at. Clients
allow 8,192 tokens. Both arms run at once, each with engines and a gateway of its own. Times are
real, so a busy machine disturbs them.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from random import Random
from statistics import fmean, median
from string import ascii_lowercase
from typing import Any, Final

import httpx

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.file import write_fleet_file
from fairlead_bench.results import ResultRow, load_goals, parse_options, write_results
from fairlead_sim.fleet.results import quantile
from fairlead_testing.engines.disaggregated import EngineProcess, engine_processes
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.gateway.running_gateway import fleet_of, with_profile
from fairlead_testing.http.raw_client import get_request, send

ENGINES: Final = 8
PROFILE: Final = "l4-qwen8b"
RATE: Final = 1.95
FIRST_LONG_SECONDS: Final = 150.0
LONG_INTERVAL_SECONDS: Final = 40.0
LONG_TOKENS: Final = 12_000
LONG_OUTPUT: Final = 64
TAIL_SECONDS: Final = 120.0
"""Streams that still run so long after the last request are cut; what they got by then counts."""
MAX_TOKENS: Final = 8_192
CHATS: Final = 1_500
"""They last 770 s."""
_NAME: Final = "defragmentation"
_LEFT_OUT: Final = 0.1
"""Share of the chats whose times do not count: the first ones find empty engines."""


@dataclass(slots=True)
class Sent:
    """A request as its client sees it.

    first, last: seconds from its begin to these tokens; None before the first one.
    """

    is_long: bool
    first: float | None = None
    last: float = 0.0
    tokens: int = 0

    @property
    def token_seconds(self) -> float | None:
        """The mean time per token after the first."""
        return (self.last - self.first) / (self.tokens - 1) if self.first is not None and self.tokens > 1 else None


@dataclass(frozen=True, slots=True)
class Arm:
    """The figures of one arm. moved: streams that left an engine to make room."""

    sent: Sequence[Sent]
    preempted: float
    moved: float

    def ttfts(self, *, is_long: bool) -> list[float]:
        """Returns the times to the first token, in rising order."""
        chosen = [one for one in self.sent if one.is_long is is_long]
        kept = chosen if is_long else chosen[int(_LEFT_OUT * len(chosen)) :]
        return sorted([one.first for one in kept if one.first is not None])


def answer_lengths(draw: Random) -> tuple[int, int]:
    """Returns prompt and answer tokens of a chat; 15 % reason at length."""
    prompt = min(8_000, max(16, int(draw.lognormvariate(6.6, 0.9))))
    output = draw.lognormvariate(7.6, 0.5) if draw.random() < 0.15 else draw.lognormvariate(5.0, 0.9)
    return prompt, max(1, min(MAX_TOKENS, int(output)))


def schedule(seed: int, seconds: float) -> list[tuple[float, int, int]]:
    """Returns moment, prompt tokens and answer tokens of each request, in order."""
    draw = Random(seed)
    lengths = [answer_lengths(draw) for _ in range(CHATS)]
    arrivals = accumulate([draw.expovariate(RATE) for _ in lengths])
    found = [(at, *tokens) for at, tokens in zip(arrivals, lengths, strict=True) if at < seconds]
    longs = int((seconds - FIRST_LONG_SECONDS) / LONG_INTERVAL_SECONDS)
    found += [
        (FIRST_LONG_SECONDS + LONG_INTERVAL_SECONDS * number, LONG_TOKENS, LONG_OUTPUT) for number in range(longs)
    ]
    return sorted(found)


async def run_arm(folder: Path, *, defragments: bool, seed: int, seconds: float) -> Arm:
    """Returns the figures of one arm, with engines and a gateway of its own."""
    file = folder / f"fleet-{defragments}.yaml"
    options = ("--profile", PROFILE, "--answer-length", "0.01", "--max-model-len", "28672", "--no-reserve-output")
    environ = {**os.environ, "FAIRLEAD_HASH_SECRET": f"{_NAME} {seed}"}
    async with AsyncExitStack() as stack:
        engines = await stack.enter_async_context(engine_processes(ENGINES, *options))
        fleet = with_profile(fleet_of([engine.url for engine in engines]), builtin_profile(PROFILE))
        models = {key: replace(model, defragments=defragments) for key, model in fleet.models.items()}
        write_fleet_file(file, replace(fleet, models=models))
        gateway = await stack.enter_async_context(gateway_process(file, environ=environ))
        limits = httpx.Limits(max_connections=None)
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=gateway.url, timeout=seconds + 600.0, limits=limits)
        )
        begun, tasks, sent = time.perf_counter(), list[asyncio.Task[None]](), list[Sent]()
        for number, (at, prompt, output) in enumerate(schedule(seed, seconds)):
            await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
            text = _words(Random(f"{seed} {number}"), prompt)
            sent.append(Sent(prompt == LONG_TOKENS))
            tasks.append(asyncio.create_task(_send(client, text, output, sent[-1])))
        _, unfinished = await asyncio.wait(tasks, timeout=TAIL_SECONDS)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        moved = sum(await gateway.samples("fairlead_gateway_moved_total", 'cause="defragmentation"'))
        return Arm(sent, await _preemptions(engines), moved)


def _words(draw: Random, count: int) -> str:
    """Returns words of three letters, each of which is a token."""
    letters = draw.choices(ascii_lowercase, k=3 * count)
    return "".join([" " + "".join(letters[at : at + 3]) for at in range(0, 3 * count, 3)])


async def _send(client: httpx.AsyncClient, text: str, output: int, sent: Sent) -> None:
    body: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": MAX_TOKENS,
        "min_tokens": output - 1,
        "stream": True,
    }
    begun = time.perf_counter()
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if '"content":"' in line and '"content":""' not in line:
                sent.tokens += 1
                sent.last = time.perf_counter() - begun
                sent.first = sent.last if sent.first is None else sent.first


async def _preemptions(engines: Sequence[EngineProcess]) -> float:
    total = 0.0
    for engine in engines:
        text = (await send(engine.url, get_request("/metrics")))[0].body.decode()
        lines = [line for line in text.splitlines() if line.startswith("vllm:num_preemptions_total")]
        total += sum([float(line.rpartition(" ")[2]) for line in lines])
    return total


async def measure(seed: int, seconds: float) -> tuple[Arm, Arm]:
    """Returns the figures without and with moves, which run side by side."""
    with tempfile.TemporaryDirectory() as folder:
        arms = [run_arm(Path(folder), defragments=moves, seed=seed, seconds=seconds) for moves in (False, True)]
        without, with_moves = await asyncio.gather(*arms)
        return without, with_moves


def rows(runs: Sequence[tuple[Arm, Arm]]) -> list[ResultRow]:
    """Returns the rows of all seeds."""
    wanted, found = load_goals(_NAME), list[ResultRow]()
    empty = builtin_profile(PROFILE).prefill_time(LONG_TOKENS)
    for number, name in enumerate(("without", "defragment")):
        arms = [run[number] for run in runs]
        longs = [seconds for arm in arms for seconds in arm.ttfts(is_long=True)]
        chats = sorted([seconds for arm in arms for seconds in arm.ttfts(is_long=False)])
        pauses = sorted([one.token_seconds for arm in arms for one in arm.sent if one.token_seconds is not None])
        failed = sum([one.first is None for arm in arms for one in arm.sent])
        for what, value in (("mean", fmean(longs)), ("median", median(longs))):
            metric = f"long prompts: {what} TTFT ÷ that of an empty engine: {name}"
            found.append(wanted.ratio(metric, "s", value, "empty", empty))
        found.append(wanted.value(f"chats: p99 TTFT: {name}", "s", quantile(chats, 0.99)))
        found.append(wanted.value(f"chats: p99 TPOT: {name}", "s", quantile(pauses, 0.99)))
        found.append(wanted.value(f"preemptions: {name}", "", sum([arm.preempted for arm in arms])))
        found.append(wanted.value(f"moves: {name}", "", sum([arm.moved for arm in arms])))
        found.append(wanted.value(f"requests without a first token: {name}", "", failed))
    return found


def main(arguments: list[str]) -> int:
    """Measures, writes and prints."""
    given = parse_options(_NAME, "Room for long prompts on processes.", arguments, seconds=560.0, seeds=[101])
    runs = [asyncio.run(measure(seed, given.seconds)) for seed in given.seeds]
    write_results(_NAME, rows(runs), seed=given.seeds[0], file=given.out, more={"seeds": given.seeds})
    return 0

"""Accuracy of the fleet simulator against two vLLM engines on processors, with a learned profile;
installs 6 GB the first time.

    python -m fairlead_bench fitted [--requests 130] [--lessons 240] [--rate 2]
                                    [--out out/bench/fitted.json]

1. The engines have no profile. The gateway knows what an engine reports (its capacity and the
   tokens of a step); the costs are those of an H100. It carries ``--lessons`` requests and learns.
2. The learned profile (``/api/fleet``) becomes that of the simulator's engines and of the fleets
   that follow.
3. The same requests, of another seed, run live and simulated under four presets. The engines'
   caches are emptied before each preset.

Prompts are those of agents that fit the engine. Their words are one token each for the engine's
tokenizer, so that both sides count alike; a query to the engine checks that.

Client, gateway and engine servers have priority over other processes where the system allows it.
The costs are those of a two-layer model on one thread of a shared machine. They say nothing about
real hardware.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import Any

import httpx

from e2e.vllm.engine.engine_processes import BLOCK_TOKENS, EngineProcess, EngineStage
from e2e.vllm.engine.installation import Installation, install
from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.file.format import FileProfile
from fairlead_bench.accuracy.fleet_vs_http import (
    OBJECTIVES,
    PRESETS,
    SECRET,
    EngineGroup,
    RunResult,
    cross_validation_rows,
    replay,
    simulate,
    summarize,
)
from fairlead_bench.results import ResultRow, load_goals, parse_options, write_results
from fairlead_cli.replay.client.open_loop_client import ReplayResult
from fairlead_cli.replay.traffic import PromptBuilder, prefix_chains
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.workload.generators import FAMILIES
from fairlead_sim.workload.traces import TraceRequest, at_rate
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.gateway.running_gateway import MODEL_KEY, fleet_of, with_profile

NAME = "fitted"
NAMES = ("e-0/0/0", "e-1/1/0")
CONTEXT_TOKENS = 8_192
STEP_TOKENS = 2_048
SEQUENCES = 32
BLOCKS = 2_048
OPTIONS = (
    *("--max-model-len", str(CONTEXT_TOKENS), "--max-num-batched-tokens", str(STEP_TOKENS)),
    *("--max-num-seqs", str(SEQUENCES), "--num-gpu-blocks-override", str(BLOCKS)),
)
UNKNOWN = replace(
    builtin_profile("h100-llama8b"),
    name="nobody-profiled",
    kv_tokens=BLOCKS * BLOCK_TOKENS,
    max_sequences=SEQUENCES,
    step_tokens=STEP_TOKENS,
)
SEED, TRAINING_SEED = 31, 32
COUNTED = 20
REPORT_SECONDS = 15.0
"""Learning waits for the latest rows and settles every ten seconds."""


class PromptWords(Tokenizer):
    """Text of words that are one token each where the engine's vocabulary is ``known``: a space and
    three letters, four bytes."""

    def __init__(self, known: Sequence[str]) -> None:
        super().__init__()
        letters = [piece[1:] for piece in known if len(piece) == 4 and piece[0] == "Ġ" and piece[1:].isascii()]
        self._words = sorted(f" {word}" for word in letters if word.isalpha() and word.islower())

    def random_text(self, n_tokens: int, seed: int | str) -> str:
        return "".join(Random(str(seed)).choices(self._words, k=n_tokens))


def draw_traffic(count: int, *, seed: int, rate: float) -> list[TraceRequest]:
    """Returns the first requests of agents that fit the engine, at ``rate`` a second."""
    most = CONTEXT_TOKENS - 2 * BLOCK_TOKENS
    found: list[TraceRequest] = []
    asked = count
    while len(found) < count:
        asked *= 2
        made = FAMILIES["agents"](asked, seed=seed)
        found = [one for one in made if one.prompt_tokens + one.output_tokens <= most][:count]
    return at_rate(found, rate)


def profile_from_report(told: Mapping[str, Any]) -> EngineProfile:
    """Returns the profile that a gateway learned, from its ``/api/fleet``: the mean over equal
    engines. Raises RuntimeError where it has none."""
    known = [instance["profile"] for instance in told["models"][0]["instances"]]
    if not all(one is not None and one["learned"] for one in known):
        raise RuntimeError(f"nothing was learned: {known}")
    profiles = [FileProfile.model_validate(one["coefficients"]).to_engine_profile("learned") for one in known]
    first = profiles[0]
    costs = [name for name in EngineProfile.__slots__ if name.endswith("_seconds")]
    mean: dict[str, Any] = {name: statistics.fmean([getattr(profile, name) for profile in profiles]) for name in costs}
    return replace(first, name="learned", **mean)


def rows(
    found: Mapping[str, tuple[RunResult, RunResult]], *, miscounted: int, errors: Sequence[float]
) -> list[ResultRow]:
    """Returns the rows of live and simulated runs by preset. ``errors`` are the gateway's own
    prediction errors, engine by engine."""
    wanted = load_goals(NAME)
    made, slower = [], []
    for rule, (real, same) in found.items():
        made.append(wanted.ratio(f"{rule}: cached tokens", "share", real.cached, "simulated", same.cached))
        made.append(wanted.ratio(f"{rule}: mean TTFT on its own choices", "s", real.ttft, "simulated", real.retraced))
        made.append(wanted.ratio(f"{rule}: mean TTFT", "s", real.ttft, "simulated", same.ttft))
        slower.append(real.ttft / same.ttft)
    pairs = [found[rule] for rule in PRESETS]
    figures = (
        ("mean TTFT, live ÷ simulated, furthest from 1", max(slower, key=lambda one: abs(one - 1.0)), "ratio"),
        ("pairs of presets in another order by mean TTFT", cross_validation_rows(pairs, attrgetter("ttft")), "pairs"),
        (
            "pairs of presets in another order by cached tokens",
            cross_validation_rows(pairs, attrgetter("cached")),
            "pairs",
        ),
        ("requests that failed", sum(real.failed for real, _ in pairs), "requests"),
        ("prompts of which the engine counts other tokens", miscounted, "prompts"),
    )
    made += [wanted.value(metric, unit, value) for metric, value, unit in figures]
    made += [
        wanted.value(f"engine {number}: single predictions off", "share", error) for number, error in enumerate(errors)
    ]
    return made


class FitBenchmark:
    """Two engines that are healthy, and what is done with them."""

    def __init__(self, engines: Sequence[EngineProcess], builder: PromptBuilder, folder: Path) -> None:
        self._engines = engines
        self._builder = builder
        self._fleet = folder / "fleet.yaml"

    async def learn_profile(self, lessons: Sequence[TraceRequest]) -> Mapping[str, Any]:
        """Returns what a gateway reports of the engines after it has proxied ``lessons``."""
        self._write("dual-hash", UNKNOWN)
        async with gateway_process(self._fleet) as gateway:
            await self._replayed(gateway, lessons)
            await asyncio.sleep(REPORT_SECONDS)
            told: Mapping[str, Any] = await gateway.get_json("/api/fleet")
            return told

    async def run_live(self, rule: str, profile: EngineProfile, requests: Sequence[TraceRequest]) -> RunResult:
        """Runs the requests against a new gateway and empty caches."""
        async with httpx.AsyncClient(timeout=60.0) as client:
            for engine in self._engines:
                (await client.post(f"{engine.url}/reset_prefix_cache")).raise_for_status()
        self._write(rule, profile)
        async with gateway_process(self._fleet) as gateway:
            outcomes = await self._replayed(gateway, requests)
        return summarize(1, rule, outcomes, requests, EngineGroup(NAMES, profile, BLOCK_TOKENS))

    def count_token_errors(self, requests: Sequence[TraceRequest]) -> int:
        """Prompts of which the engine counts another number of tokens than the simulator."""
        wrong = 0
        for request in requests[:COUNTED]:
            asked = {"model": "tiny", "messages": self._builder.messages(request)}
            answer = httpx.post(f"{self._engines[0].url}/tokenize", json=asked, timeout=60.0).raise_for_status()
            wrong += answer.json()["count"] != request.prompt_tokens
        return wrong

    async def _replayed(self, gateway: GatewayProcess, requests: Sequence[TraceRequest]) -> list[ReplayResult]:
        with start_gateway(
            [gateway.process.pid, *gateway.worker_pids(), *[engine.process.pid for engine in self._engines]]
        ):
            return await replay([gateway.url], requests, self._builder, 1.0)

    def _write(self, rule: str, profile: EngineProfile) -> None:
        urls = [engine.url for engine in self._engines]
        write_fleet_file(self._fleet, with_profile(fleet_of(urls, preset=rule, objectives=OBJECTIVES), profile))


@contextmanager
def start_gateway(servers: Iterable[int]) -> Iterator[None]:
    """Raises the scheduling priority of this process and of the servers, which compute little. Why:
    an idle engine that polls for work keeps them from a processor for a second at a time. Without
    the permission nothing changes."""
    first = os.sched_param(1)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, first)
        for thread in [int(path.name) for server in servers for path in Path(f"/proc/{server}/task").iterdir()]:
            os.sched_setscheduler(thread, os.SCHED_FIFO, first)
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def start_engines(stage: EngineStage) -> list[EngineProcess]:
    """Starts two engines on a processor each."""
    switches = {"VLLM_SERVER_DEV_MODE": "1"}  # caches can be emptied
    engines = [
        stage.engine(f"engine-{core}", *OPTIONS, core=core, environment=switches, nice=0) for core in range(len(NAMES))
    ]
    for engine in engines:
        engine.await_health()
        with suppress(OSError):  # where sessions share processors, niceness counts within one only
            Path(f"/proc/{engine.process.pid}/autogroup").write_text("-10")
    return engines


def load_words(installed: Installation) -> PromptWords:
    told = json.loads((installed.model / "tokenizer.json").read_text(encoding="utf-8"))
    return PromptWords(list(told["model"]["vocab"]))


async def measure(bench: FitBenchmark, builder: PromptBuilder, given: argparse.Namespace) -> None:
    """Learns, replays, simulates and writes."""
    requests = draw_traffic(given.requests, seed=SEED, rate=given.rate)
    miscounted = bench.count_token_errors(requests)
    told = await bench.learn_profile(draw_traffic(given.lessons, seed=TRAINING_SEED, rate=given.rate))
    profile = profile_from_report(told)
    print(profile, flush=True)
    chain = prefix_chains(builder, secret=SECRET.encode(), model_key=MODEL_KEY)
    chains = {request.id: chain(request) for request in requests}
    engines = EngineGroup(NAMES, profile, BLOCK_TOKENS)
    found = {}
    for rule in PRESETS:
        real = await bench.run_live(rule, profile, requests)
        found[rule] = real, simulate(1, rule, requests, lambda request: chains[request.id], engines)
        print(rule, *found[rule], flush=True)
    errors = [instance["profile"]["error"] for instance in told["models"][0]["instances"]]
    made = rows(found, miscounted=miscounted, errors=errors)
    costs = {name: getattr(profile, name) for name in EngineProfile.__slots__}
    write_results(NAME, made, seed=SEED, file=given.out, more={"learned": costs})


def main(arguments: list[str]) -> int:
    """Measures, writes and prints."""
    given = parse_options(
        NAME,
        "The simulator compared with two vLLM engines.",
        arguments,
        requests=130,
        lessons=(240, "requests from which the gateway learns"),
        rate=(2.0, "requests a second"),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that engines end with us
    os.environ["FAIRLEAD_HASH_SECRET"] = SECRET
    installed = install()
    builder = PromptBuilder(load_words(installed))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fairlead-fitted-")))
        engines = start_engines(stack.enter_context(EngineStage(installed, folder)))
        asyncio.run(measure(FitBenchmark(engines, builder, folder), builder, given))
    return 0

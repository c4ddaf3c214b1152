"""The worth of the KV index with real gateways before simulated engines.

    python -m fairlead_bench knowledge-processes [--scenarios A,B] [--seeds 5]
                                                 [--out out/bench/knowledge-processes.json]

Each scenario has one severity, one load and one working set. The traffic is the sessions of agents
of ``gateways``, ten at a time, with 1.4 times the tokens that all engines hold. Adapters make that
1.7, and salts 1.9. The arms of a scenario differ in the gateways' environment alone:
FAIRLEAD_LINKS=off routes without the index. Engines publish their events in both.

Each request asks for one token, so that the time of its answer is the time to its first token. No
request is left out as a warm-up. Recomputed tokens are those that an endless cache of all engines
would have held; see ``endless_cached_tokens``. Processor time is that of all processes of all
gateways, from the first request to the last answer, and so includes their work between requests.

Each row is a ratio to the arm without the index, paired by seed. Its interval is Student's t at 95
% over the seeds. Times are real, so a busy machine disturbs them. Pictures are not measured, since
simulated engines take none.
"""

import asyncio
import math
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import count
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.file import write_fleet_file
from fairlead_bench.gateway.target_process import tree_usage
from fairlead_bench.results import NO_GOALS, ResultRow, parse_options, write_results
from fairlead_bench.sharing.gateway_processes import (
    BLOCK_TOKENS,
    ENGINES,
    SECRET,
    SETTINGS,
    AgentTraffic,
    Body,
    FleetSetting,
    drive,
    sessions,
)
from fairlead_bench.sharing.knowledge_scenarios import PROCESS_SCENARIOS, SEEDS, ProcessScenario
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.gateway.index_stage import EnginePorts, IndexStage
from fairlead_testing.gateway.running_gateway import with_profile
from fairlead_testing.http.raw_client import request

_NAME = "knowledge-processes"
_STUDENT_T: Final = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""The 97.5 % quantile by the number of seeds."""
_MIN_RECOMPUTED_SHARE: Final = 0.01
"""The share of the prompt tokens that counts as recomputed if fewer are.

Why: an undisturbed gateway recomputes 0 to 0.3 %, and a ratio of two such numbers is noise.
"""


class Knowledge(StrEnum):
    """The knowledge of the caches that a gateway has besides its own records."""

    NONE = "no index"
    INDEX = "index"


_LINKS: Final = {Knowledge.NONE: "off", Knowledge.INDEX: "engine"}
"""FAIRLEAD_LINKS of each arm."""


@dataclass(frozen=True, slots=True)
class KnowledgeRun:
    """Figures of one run.

    cpu_seconds: processor time of the gateways per request, also of requests past them.
    linked_blocks: blocks of prompts whose place in the index the gateways know; 0 without an index.
    quarantined: instances whose index gateways do not use at the end.
    """

    prompt_tokens: int
    cached_tokens: int
    recomputed_tokens: int
    p50_seconds: float
    p90_seconds: float
    requests: int
    failures: int
    cpu_seconds: float
    linked_blocks: int
    quarantined: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A ratio of two arms, as the mean of logarithms over seeds, with its interval."""

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """The ratio in one word: ``wins`` if it is less by a tenth, ``loses`` if it is more by a
        hundredth, else ``neutral``. Both count beyond the interval only.
        """
        if self.ratio <= 0.9 and self.high < 1.0:
            return "wins"
        return "loses" if self.low > 1.01 else "neutral"


def scenario_sessions(scenario: ProcessScenario, sessions_count: int, seed: int) -> list[list[Body]]:
    """Returns the sessions of ``gateways``, with the adapter and the salt of each."""
    found = []
    for number, session in enumerate(sessions(sessions_count, seed)):
        fields: Body = {"max_tokens": 1}
        if scenario.adapters and number % 2:
            fields["model"] = scenario.adapters[number // 2 % len(scenario.adapters)]
        if scenario.tenants:
            fields["cache_salt"] = f"tenant {number % scenario.tenants}"
        found.append([body | fields for body in session])
    return found


def endless_cached_tokens(requests: Iterable[Body]) -> int:
    """Returns the prompt tokens that one endless cache would find.

    A block counts from its second request on, unless it ends the prompt, whose last token is always
    computed. Two blocks are the same if their tokens, all tokens before them, the model and the
    salt are. The order of the requests hardly matters: one of them computes the block first.
    """
    tokenizer, known, found = Tokenizer(), set[int](), 0
    for body in requests:
        tokens = tokenizer.encode_chat(body["messages"])
        block = hash((body["model"], body.get("cache_salt")))
        for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
            block = hash((block, *tokens[end - BLOCK_TOKENS : end]))
            if block in known and end < len(tokens):
                found += BLOCK_TOKENS
            known.add(block)
    return found


async def measure(
    scenario: ProcessScenario, knowledge: Knowledge, seed: int, folder: Path, setting: FleetSetting
) -> KnowledgeRun:
    """Returns the figures of one run with its own engines and gateways."""
    disturbance, path = scenario.disturbance, folder / "fleet.yaml"
    agents = scenario_sessions(scenario, setting.sessions, seed)
    ports = [EnginePorts.free() for _ in range(ENGINES)]
    profile = builtin_profile(setting.profile).sped_up(setting.speed)
    stated = replace(profile, kv_tokens=int(setting.blocks * disturbance.stated_memory) * BLOCK_TOKENS)
    write_fleet_file(path, with_profile(IndexStage(path, ports, tuple(scenario.adapters)).fleet(), stated))
    environ = {**os.environ, "FAIRLEAD_HASH_SECRET": SECRET, "FAIRLEAD_LINKS": _LINKS[knowledge]}
    async with AsyncExitStack() as stack:
        # fmt: off
        options = [
            "--num-gpu-blocks-override", str(setting.blocks), "--block-size", str(BLOCK_TOKENS),
            "--max-model-len", "16384", "--profile", setting.profile, "--speed", str(setting.speed),
            *(part for name in scenario.adapters for part in ("--lora", f"{name}=/adapters/{name}")),
        ]
        # fmt: on
        started = [stack.enter_async_context(port.run_engine(*options)) for port in ports]
        engines = [engine.url for engine in await asyncio.gather(*started)]
        gateways = [
            await stack.enter_async_context(gateway_process(path, environ=environ)) for _ in range(disturbance.gateways)
        ]
        urls = _destinations([gateway.url for gateway in gateways], engines, disturbance.bypassing_share)
        before = _cpu_seconds(gateways)
        traffic = AgentTraffic(agents, seed, engines=engines)
        figures = await drive(urls, traffic, between=_cache_resets(engines, disturbance.reset_every))
        spent = _cpu_seconds(gateways) - before
        linked = [await gateway.metric("fairlead_gateway_index_links") for gateway in gateways]
        quarantined = [await gateway.metric("fairlead_gateway_index_quarantined") for gateway in gateways]
    waited = sorted(figures.whole_seconds)
    endless = endless_cached_tokens(body for session in agents for body in session)
    return KnowledgeRun(
        figures.prompt_tokens,
        figures.cached_tokens,
        endless - figures.cached_tokens,
        waited[len(waited) // 2],
        waited[int(0.9 * len(waited))],
        figures.requests,
        figures.failures,
        spent / figures.requests,
        int(sum(linked)),
        int(sum(quarantined)),
    )


def _destinations(gateways: Sequence[str], engines: Sequence[str], bypassing_share: float) -> list[str]:
    """Returns URLs of which each request goes to a random one: engines get this share, to a
    hundredth."""
    hundredths = round(100 * bypassing_share)
    through = [url for url in gateways for _ in range((100 - hundredths) * len(engines))]
    return [*through, *(url for url in engines for _ in range(hundredths * len(gateways)))]


def _cache_resets(engines: Sequence[str], answers: int) -> Callable[[], Awaitable[None]] | None:
    """Returns a function that is called after each answer and resets engines in turn.

    answers: between two resets; 0: no engine is reset, and the function is None. Running requests
        are computed again, as after a restart. Raises RuntimeError if an engine refuses.
    """
    numbers = count(1)

    async def reset() -> None:
        turn, remainder = divmod(next(numbers), answers)
        if not remainder:
            path = "/reset_prefix_cache?reset_running_requests=true"
            answer = await request(engines[turn % len(engines)], b"", path=path)
            if not answer.json["success"]:
                raise RuntimeError(f"{engines[turn % len(engines)]} did not empty its cache")

    return reset if answers else None


def _cpu_seconds(gateways: Sequence[GatewayProcess]) -> float:
    return sum(tree_usage(gateway.process.pid).cpu_seconds for gateway in gateways)


def compare(ratios: Sequence[float]) -> Comparison:
    """Returns the mean ratio and its interval; one ratio per seed."""
    logs = [math.log(ratio) for ratio in ratios]
    middle = fmean(logs)
    half = _STUDENT_T[len(logs)] * stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0
    return Comparison(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def judge(metric: str, ratios: Sequence[float]) -> tuple[ResultRow, dict[str, object]]:
    """Returns the row of a mean ratio, and its verdict; one ratio per seed."""
    comparison = compare(ratios)
    verdict = {"row": metric, **asdict(comparison), "verdict": comparison.verdict}
    return NO_GOALS.value(metric, "ratio", comparison.ratio), verdict


_MEASURES: Final[Mapping[str, Callable[[KnowledgeRun], float]]] = {
    "p90 TTFT": lambda run: run.p90_seconds,
    "recomputed tokens": lambda run: max(_MIN_RECOMPUTED_SHARE * run.prompt_tokens, run.recomputed_tokens),
    "gateways' processor time": lambda run: run.cpu_seconds,
}


def rows(
    found: Mapping[str, Mapping[Knowledge, Sequence[KnowledgeRun]]],
) -> tuple[list[ResultRow], list[dict[str, object]]]:
    """Returns the rows of scenarios, and the verdict of each.

    found: runs of each seed.
    """
    made: list[ResultRow] = []
    verdicts: list[dict[str, object]] = []
    for name, arms in found.items():
        pairs = list(zip(arms[Knowledge.INDEX], arms[Knowledge.NONE], strict=True))
        for measured, read in _MEASURES.items():
            ratios = [read(index) / read(none) for index, none in pairs]
            row, verdict = judge(f"{name}: {measured}: index ÷ no index", ratios)
            made.append(row)
            verdicts.append(verdict)
    failures = sum(run.failures for arms in found.values() for runs in arms.values() for run in runs)
    return [*made, NO_GOALS.value("requests that failed", "requests", failures)], verdicts


async def _measure_all(
    scenarios: Sequence[str], seeds: Sequence[int]
) -> dict[str, dict[Knowledge, list[KnowledgeRun]]]:
    """Returns the runs of all scenarios by arm and seed. The arm that runs first alternates."""
    found: dict[str, dict[Knowledge, list[KnowledgeRun]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in scenarios:
            found[name] = {arm: [] for arm in _LINKS}
            for number, seed in enumerate(seeds):
                for arm in sorted(_LINKS, reverse=number % 2 == 1):
                    run = await measure(PROCESS_SCENARIOS[name], arm, seed, Path(folder), SETTINGS["agents"])
                    found[name][arm].append(run)
                    print(name, seed, arm, asdict(run), flush=True)
    return found


def main(arguments: list[str]) -> int:
    """Measures, writes and prints."""
    given = parse_options(
        _NAME,
        "Real gateways without the KV index and with it, before simulated engines.",
        arguments,
        scenarios=(list(PROCESS_SCENARIOS), "only these"),
        seeds=len(SEEDS),
    )
    seeds = SEEDS[: given.seeds]
    found = asyncio.run(_measure_all(given.scenarios, seeds))
    made, verdicts = rows(found)
    table = [
        {"scenario": name, "knowledge": arm, "seed": seed, **asdict(run)}
        for name, arms in found.items()
        for arm, runs in arms.items()
        for seed, run in zip(seeds, runs, strict=True)
    ]
    return write_results(_NAME, made, seed=0, file=given.out, more={"verdicts": verdicts, "runs": table})

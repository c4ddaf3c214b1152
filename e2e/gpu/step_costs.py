"""Seconds of prompts and of decode steps as engines take them, and the engine profile that fits
them.

Everything is measured over HTTP. A decode step is the difference between long and short answers to
the same prompts, whose KV is cached: so neither prompts nor connections count. Engines that share
an accelerator are measured at the same time, since they slow one another.

A fleet of engines under the routing presets: costs, replays of the bundled trace, and the index.

Every preset gets empty caches, a new gateway and the same requests. Their rate follows from the
measured costs: prompts without any cache hit would take a given share of the engines' time. So fast
and slow accelerators are loaded alike.
"""

import asyncio
import itertools
import json
import math
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, Final

import httpx

from e2e.gpu.control_plane import SLO, ControlPlane, cached_tokens, compare_index
from e2e.gpu.engines import MAX_SEQUENCES, MODEL, EngineGroup, used_memory_bytes
from e2e.vllm.engine.engine_processes import GatewayProcess, fetch
from e2e.vllm.report import Numbers, VllmReport, require
from fairlead.engine_profile import EngineProfile, builtin_profiles
from fairlead.fleet.file import profile_fields
from fairlead_cli.replay.client.open_loop_client import ClientRun, OpenLoopClient, ReplayResult
from fairlead_cli.replay.report.report import summarize
from fairlead_cli.replay.traffic import PromptBuilder, ReplayTarget, load_traffic, plan_requests
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.workload.traces import BUNDLED_TRACE

FITTED: Final = "fitted"
_TIMEOUT_SECONDS: Final = 300.0
_SHORT, _LONG = 8, 40
"""Tokens of the two answers whose difference are decode steps."""
_SMALLEST_FITTED: Final = 1_024
"""Prompts below are not fitted: their steps take as long as the weights."""
_SMALLEST_JUDGED: Final = 256
_KV_SHARE: Final = 0.9
_SHARES, _ROUNDS = 10, 20
_COMPARED: Final = ("h100-", "h200-")
_SWEEPS: Final = 20_000
_TOKEN_IDS: Final = (1_000, 30_000)

PRESETS: Final = ("dual-hash", "round-robin", "least-request")
LOAD: Final = 0.8
_COST_SECONDS: Final = 60.0
_PATIENCE_SECONDS: Final = 90.0
_SEED: Final = 7


@dataclass(frozen=True, slots=True)
class CostGrid:
    """Measured points: prompt lengths, and numbers of sequences at each context length."""

    prompts: Sequence[int]
    contexts: Sequence[int]
    sequences: Sequence[int]
    tries: int = 3


FLEET_GRID: Final = CostGrid((256, 1_024, 2_048, 4_096, 8_192, 16_384), (1_024, 8_192), (1, 8, 24, 48), tries=2)
"""For engines of a fleet: seconds, not minutes."""
QUICK_GRID: Final = CostGrid((256, 1_024, 4_096, 8_192), (1_024, 4_096), (1, 8, 24))
"""For simulated engines."""
FULL_GRID: Final = CostGrid(
    (16, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 30_000),
    (1_024, 8_192, 30_000),
    (1, 4, 16, 32, 64, 128, 256),
)


@dataclass(frozen=True, slots=True)
class PromptCost:
    """Seconds to the first token of a prompt that nothing is cached of."""

    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DecodeCost:
    """Seconds of a step that decodes one token of each sequence."""

    sequences: int
    context: int
    seconds: float

    @property
    def mean_context(self) -> float:
        return self.context + (_SHORT + _LONG) / 2


@dataclass(slots=True)
class StepCosts:
    """All measurements of equal engines. kv_tokens: what the cache of one engine holds."""

    kv_tokens: int
    step_tokens: int
    prompts: list[PromptCost] = field(default_factory=list)
    decodes: list[DecodeCost] = field(default_factory=list)

    @classmethod
    def from_json(cls, found: Mapping[str, Any], step_tokens: int) -> "StepCosts":
        """Returns the measurements of `to_json`."""
        costs = cls(found["kv_tokens"], step_tokens)
        costs.prompts = [PromptCost(*row) for row in found["prompt_tokens_and_seconds"]]
        costs.decodes = [DecodeCost(*row) for row in found["sequences_context_and_step_seconds"]]
        return costs

    def to_json(self) -> dict[str, Any]:
        """Returns rows of numbers."""
        return {
            "kv_tokens": self.kv_tokens,
            "prompt_tokens_and_seconds": [[row.tokens, round(row.seconds, 5)] for row in self.prompts],
            "sequences_context_and_step_seconds": [
                [row.sequences, row.context, round(row.seconds, 6)] for row in self.decodes
            ],
        }


async def measure_step_costs(
    group: EngineGroup, grid: CostGrid, *, seconds: float, on_row: Callable[[str], None]
) -> StepCosts:
    """Measures all engines of a group at the same time; a row is the mean over the engines.

    seconds: no further row is begun after so long.
    """
    began = time.monotonic()
    urls = [engine.url for engine in group.engines.values()]
    costs = StepCosts(min(map(_kv_tokens, urls)), group.step_tokens)
    async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, limits=httpx.Limits(max_connections=None)) as client:
        engines = [_MeasuredEngine(client, url, Random(url)) for url in urls]
        await _on_all(engines, lambda engine: engine.answer(engine.draw_prompts(1, 512), 2))
        for tokens in grid.prompts:
            if time.monotonic() - began > seconds:
                break
            row = PromptCost(tokens, await _measure_prompt(engines, tokens, grid.tries))
            costs.prompts.append(row)
            on_row(str(row))
        for engine in engines:
            engine.prompts = engine.draw_prompts(max(grid.sequences), max(grid.contexts))
        for context in grid.contexts:
            for sequences in grid.sequences:
                is_late = time.monotonic() - began > seconds
                if is_late or sequences * (context + _LONG) > costs.kv_tokens * _KV_SHARE:
                    continue
                step = DecodeCost(sequences, context, await _measure_step(engines, sequences, context))
                costs.decodes.append(step)
                on_row(str(step))
    return costs


@dataclass(slots=True)
class _MeasuredEngine:
    client: httpx.AsyncClient
    url: str
    draw: Random
    prompts: list[list[int]] = field(default_factory=list)

    def draw_prompts(self, count: int, tokens: int) -> list[list[int]]:
        return [[self.draw.randrange(*_TOKEN_IDS) for _ in range(tokens)] for _ in range(count)]

    async def answer(self, prompts: Sequence[Sequence[int]], tokens: int) -> float:
        """Returns the seconds that answers of so many tokens to all prompts take together."""
        body = {"model": MODEL, "prompt": prompts, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        began = time.perf_counter()
        (await self.client.post(f"{self.url}/v1/completions", json=body)).raise_for_status()
        return time.perf_counter() - began


async def _on_all(engines: Sequence[_MeasuredEngine], measure: Callable[[_MeasuredEngine], Any]) -> list[float]:
    return list(await asyncio.gather(*(measure(engine) for engine in engines)))


async def _measure_prompt(engines: Sequence[_MeasuredEngine], tokens: int, tries: int) -> float:
    found = [
        fmean(await _on_all(engines, lambda engine: engine.answer(engine.draw_prompts(1, tokens), 1)))
        for _ in range(tries)
    ]
    return min(found)  # the others were disturbed


async def _measure_step(engines: Sequence[_MeasuredEngine], sequences: int, context: int) -> float:
    async def measure(tokens: int) -> float:
        return fmean(
            await _on_all(
                engines,
                lambda engine: engine.answer([prompt[:context] for prompt in engine.prompts[:sequences]], tokens),
            )
        )

    await measure(1)  # caches the prompts
    short = min(await measure(_SHORT), await measure(_SHORT))
    long = min(await measure(_LONG), await measure(_LONG))
    return (long - short) / (_LONG - _SHORT)


def _kv_tokens(url: str) -> int:
    """Returns the tokens of an engine's cache, from its metrics."""
    text = fetch(f"{url}/metrics").decode()
    info = next(line for line in text.splitlines() if line.startswith("vllm:cache_config_info"))
    labels = dict(re.findall(r'(\w+)="([^"]*)"', info))
    return int(labels["num_gpu_blocks"]) * int(labels["block_size"])


# The fit


@dataclass(frozen=True, slots=True)
class FitErrors:
    """Differences of a profile from the measurements, as shares of the measured seconds."""

    prompt_mean: float
    prompt_max: float
    decode_mean: float
    decode_max: float

    def to_json(self) -> dict[str, float]:
        """Returns the shares."""
        return {
            "prompt_mean": round(self.prompt_mean, 3),
            "prompt_max": round(self.prompt_max, 3),
            "decode_mean": round(self.decode_mean, 3),
            "decode_max": round(self.decode_max, 3),
        }


def fit_profile(costs: StepCosts) -> EngineProfile:
    """Returns the profile with the least sum of squared relative errors; no cost is negative.

    Least squares give d + w, p, q, s and c (see `fairlead.engine_profile`). They need two guesses:
    the share of w in d + w, and the decode steps that arithmetic limits, not the weights. The steps
    are chosen again until they agree with the costs, and the best share is taken.

    Raises ValueError without long prompts or without decode steps.
    """
    if not any(row.tokens >= _SMALLEST_FITTED for row in costs.prompts) or not costs.decodes:
        raise ValueError("a fit needs prompts of 1,024 tokens and more, and decode steps")
    fits = [_fit_with_share(costs, number / _SHARES) for number in range(_SHARES)]
    return min(fits, key=lambda profile: sum(error**2 for error in _fitted_errors(profile, costs)))


def _fit_with_share(costs: StepCosts, share: float) -> EngineProfile:
    """Returns the best profile whose w is this share of d + w."""
    limited_by_arithmetic = [False] * len(costs.decodes)
    for _ in range(_ROUNDS):
        rows, seconds = [], []
        for prompt in costs.prompts:
            if prompt.tokens >= _SMALLEST_FITTED:
                chunks = -(-prompt.tokens // costs.step_tokens)
                rows.append([chunks * (1 - share), prompt.tokens, prompt.tokens**2 / 2, 0.0, 0.0])
                seconds.append(prompt.seconds)
        for step, is_limited in zip(costs.decodes, limited_by_arithmetic, strict=True):
            fixed, computed = (1 - share, step.sequences) if is_limited else (1.0, 0)
            rows.append([fixed, computed, 0.0, step.sequences, step.sequences * step.mean_context])
            seconds.append(step.seconds)
        relative = [[value / second for value in row] for row, second in zip(rows, seconds, strict=True)]
        step_and_weights, token, pair, sequence, resident = _solve_nonnegative(relative)
        chosen = [token * step.sequences > share * step_and_weights for step in costs.decodes]
        if chosen == limited_by_arithmetic:
            break
        limited_by_arithmetic = chosen
    return EngineProfile(
        FITTED,
        prefill_token_seconds=token,
        attention_seconds=pair,
        weights_seconds=share * step_and_weights,
        step_seconds=(1 - share) * step_and_weights,
        sequence_seconds=sequence,
        resident_token_seconds=resident,
        kv_tokens=costs.kv_tokens,
        max_sequences=MAX_SEQUENCES,
        step_tokens=costs.step_tokens,
    )


def _fitted_errors(profile: EngineProfile, costs: StepCosts) -> list[float]:
    prompts = [row for row in costs.prompts if row.tokens >= _SMALLEST_FITTED]
    return [*(_prompt_error(profile, row) for row in prompts), *(_decode_error(profile, row) for row in costs.decodes)]


def _prompt_error(profile: EngineProfile, row: PromptCost) -> float:
    return abs(profile.prefill_time(row.tokens) / row.seconds - 1)


def _decode_error(profile: EngineProfile, row: DecodeCost) -> float:
    resident = round(row.sequences * row.mean_context)
    step = profile.step_time(computed=row.sequences, sequences=row.sequences, resident=resident)
    return abs(step / row.seconds - 1)


def profile_errors(profile: EngineProfile, costs: StepCosts) -> FitErrors:
    """Returns how far a profile is from the measured prompts of 256 tokens and more and from all
    decode steps.
    """
    prompts = [_prompt_error(profile, row) for row in costs.prompts if row.tokens >= _SMALLEST_JUDGED]
    decodes = [_decode_error(profile, row) for row in costs.decodes]
    return FitErrors(fmean(prompts), max(prompts), fmean(decodes), max(decodes))


def compare_profiles(costs: StepCosts) -> dict[str, Any]:
    """Returns the fitted profile, its errors, and those of the built-in profiles of Hopper GPUs."""
    profile = fit_profile(costs)
    known = {name: one for name, one in builtin_profiles().items() if name.startswith(_COMPARED)}
    return {
        "profile": profile_fields(profile),
        "fit_errors": profile_errors(profile, costs).to_json(),
        "builtin_errors": {name: profile_errors(one, costs).to_json() for name, one in known.items()},
    }


def _solve_nonnegative(rows: Sequence[Sequence[float]]) -> list[float]:
    """Returns the nonnegative x with the least squares of rows·x - 1, by coordinate descent.

    Columns are scaled to the same length first.
    """
    count = len(rows[0])
    lengths = [sum(row[column] ** 2 for row in rows) ** 0.5 or 1.0 for column in range(count)]
    scaled = [[value / length for value, length in zip(row, lengths, strict=True)] for row in rows]
    gram = [[sum(row[i] * row[j] for row in scaled) for j in range(count)] for i in range(count)]
    target = [sum(row[i] for row in scaled) for i in range(count)]
    found = [0.0] * count
    for _ in range(_SWEEPS):
        change = 0.0
        for i in range(count):
            if gram[i][i] == 0.0:
                continue
            rest = target[i] - sum(gram[i][j] * found[j] for j in range(count) if j != i)
            value = max(0.0, rest / gram[i][i])
            change = max(change, abs(value - found[i]))
            found[i] = value
        if change < 1e-12:
            break
    return [value / length for value, length in zip(found, lengths, strict=True)]


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """The extent of the part.

    load: share of the engines' time that the prompts take without any cache hit; gives the rate.
    rounds: how often every preset is replayed.
    until: monotonic seconds after which no replay of a later round begins.
    probes: prompts by which the index is compared with the engines.
    """

    requests: int = 500
    load: float = LOAD
    rounds: int = 1
    until: float = math.inf
    probes: int = 100
    presets: Sequence[str] = PRESETS
    grid: CostGrid = FLEET_GRID


class FleetRouting:
    """The part `fleet`. out: gets the measurements of single requests."""

    def __init__(
        self, group: EngineGroup, plane: ControlPlane, report: VllmReport, options: RoutingOptions, out: Path
    ) -> None:
        self._group = group
        self._plane = plane
        self._report = report
        self._options = options
        self._out = out
        self._traffic = load_traffic(BUNDLED_TRACE, limit=options.requests, rate=None)
        self._builder = PromptBuilder(Tokenizer())

    async def run(self) -> None:
        """Measures the costs, replays and probes, in this order. The engines run already."""
        await self._report.check("step costs, all engines at once", self._measure_costs)
        for number, preset in itertools.product(range(self._options.rounds), self._options.presets):
            if number and time.monotonic() > self._options.until:
                break
            name = f"{preset}, round {number + 1}"
            await self._report.check(f"replay: {name}", lambda: self._replay(preset, number))  # noqa: B023
            if number == 0 and preset == self._options.presets[0]:
                await self._report.check("index compared with the engines", self._probe_index)

    async def _measure_costs(self) -> Numbers:
        costs = await measure_step_costs(
            self._group, self._options.grid, seconds=_COST_SECONDS, on_row=lambda row: print(row, flush=True)
        )
        profile = fit_profile(costs)
        self._plane.profile = profile
        seconds = fmean(profile.prefill_time(request.prompt_tokens) for request in self._traffic.requests)
        rate = self._options.load * len(self._group.slots) / seconds
        self._traffic = self._traffic.with_rate(round(rate, 2))
        memory = used_memory_bytes()
        numbers: Numbers = {
            "profile": profile_fields(profile),
            "fit_errors": profile_errors(profile, costs).to_json(),
            **costs.to_json(),
            "load": self._options.load,
            "rate": self._traffic.rate,
            "gpu_memory_used_gib": None if memory is None else round(memory / 2**30, 1),
        }
        (self._out / "fleet-costs.json").write_text(json.dumps(numbers, indent=1))
        return numbers

    async def _replay(self, preset: str, number: int) -> Numbers:
        await self._clear_caches()
        gateway = self._plane.start_gateway(preset)
        observes = number == 0 and preset == self._options.presets[0]
        autoscaler = self._plane.start_autoscaler(gateway) if observes else None
        try:
            run = await self._send(gateway)
            results = run.results
            numbers = self._summarize(results) | {"client_late_p99_seconds": round(run.late_p99_seconds, 4)}
            if autoscaler is not None:
                numbers["autoscaler"] = autoscaler.last_record()
        finally:
            await asyncio.to_thread(gateway.stop)
        rows = [_row(result) for result in results]
        (self._out / f"replay-{preset}-{number + 1}.json").write_text(
            json.dumps({"rate": self._traffic.rate, "rows": rows})
        )
        require(not numbers["errors"], "requests failed", numbers)
        if autoscaler is not None:
            require(numbers["autoscaler"]["engines"], "the autoscaler sees no metrics of the engines", numbers)
        return numbers

    async def _send(self, gateway: GatewayProcess) -> ClientRun:
        target = ReplayTarget(gateway.url, model=MODEL)
        plan = plan_requests(self._traffic.requests, target, speed=1.0, builder=self._builder)
        return await OpenLoopClient(target.host, target.port, patience_seconds=_PATIENCE_SECONDS).run(plan)

    def _summarize(self, results: Sequence[ReplayResult]) -> Numbers:
        summary = asdict(summarize(results, objectives=SLO, instances=len(self._group.slots)))
        tpots = sorted(result.itl_mean_seconds for result in results if result.itl_mean_seconds is not None)
        errors = [result.error for result in results if result.error is not None]
        return {
            **summary,
            "tpot_seconds": {"mean": fmean(tpots), "p50": tpots[len(tpots) // 2]} if tpots else None,
            "rate": self._traffic.rate,
            "seconds": round(max(result.finished_seconds or 0.0 for result in results), 1),
            "first_errors": errors[:3],
        }

    async def _probe_index(self) -> Numbers:
        drawn = random.Random(_SEED).sample(
            list(self._traffic.requests), min(self._options.probes, self._options.requests)
        )
        return await compare_index(self._group, self._plane, [self._builder.messages(request) for request in drawn])

    async def _clear_caches(self) -> None:
        """Empties every cache. An engine publishes it with its next step, so each gets a request
        after it.
        """
        async with httpx.AsyncClient(timeout=60.0) as client:
            for number, engine in enumerate(self._group.engines.values()):
                (await client.post(f"{engine.url}/reset_prefix_cache")).raise_for_status()
                await cached_tokens(client, engine.url, [1_000 + number] * 8)


def _row(result: ReplayResult) -> dict[str, Any]:
    """Returns what a later simulation needs of a request."""
    return {
        "id": result.id,
        "instance": result.instance,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "output_tokens": result.output_tokens,
        "ttft_seconds": result.ttft_seconds,
        "tpot_seconds": result.itl_mean_seconds,
        "finished_seconds": result.finished_seconds,
        "reason": result.reason,
        "error": result.error,
    }

"""The scenarios of the autoscaler benchmark, each from a seed.

Functions that make scenarios from loads, pools and an SLO, and that let replicas sleep.

The scenarios with goals, each from a seed.

There are smooth days, a noisy hour, crashes, an engine slower than its profile, growing answers and
long prompts. Others have a workload that moves between prefill and decode, missing or zeroed
metrics, steps, bursts and silence. Two scenarios read a published trace (Azure's hour of
conversations, Mooncake's conversations); without the traces' folder they generate similar traffic.

Scenarios on which no setting of the autoscaler was chosen: one hour each, from a seed.

Their traffic and engines differ from those of ``SCENARIOS``. Lengths drift, prompts are
very long, a fleet starts too small, and there are two more engine classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Final

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Role, SloTargets
from fairlead_autoscaler.core.types import SleepTier
from fairlead_sim.autoscaling import traffic as loads
from fairlead_sim.autoscaling.plant import AutoscalingScenario, PlantFaults
from fairlead_sim.autoscaling.pool import PoolSetup, SleepTimings, StartupDistribution
from fairlead_sim.autoscaling.reference_pools import (
    COLD_START,
    LARGE_COLD_START,
    LARGE_COST,
    WARM_START,
    large_profile,
    reference_model,
    reference_pool,
    small_profile,
)
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.routing import LoadPolicy
from fairlead_sim.workload.generators import conversation_traffic
from fairlead_sim.workload.traces import read_azure, read_mooncake, spread_ties

CHAT_SLO: Final = SloTargets(ttft_seconds=3.0, itl_seconds=0.15)
_HOUR_SECONDS = 3600.0
_MINUTE_NOISE, _MINUTE_MEMORY = 0.06, 0.3

AZURE_CONVERSATIONS = "AzureLLMInferenceTrace_conv.csv"
MOONCAKE_CONVERSATIONS = "conversation_trace.jsonl"
_SILENCE_SECONDS = 360.0
"""The least time without a request after which the next one is a sudden change."""

_H100_COST = 6.0
_L4_COST = 0.8
_MINUTES = 60


def slo_targets(ttft: float, itl: float) -> SloTargets:
    """Returns an SLO of these latencies, in seconds."""
    return SloTargets(ttft_seconds=ttft, itl_seconds=itl)


def make_scenario(
    name: str, seed: int, hours: float, load: ArrivalTrace, pools: list[PoolSetup], slo: SloTargets
) -> AutoscalingScenario:
    model = reference_model(pools, slo.ttft_seconds, slo.itl_seconds)
    return AutoscalingScenario(name, seed, hours * _HOUR_SECONDS, model, tuple(pools), load)


def chat_scenario(
    name: str, seed: int, begin: float, hours: int, mean: float, startup: StartupDistribution = COLD_START
) -> AutoscalingScenario:
    """Returns ``hours`` of the day of conversations, from hour ``begin``.

    mean: requests per second over the whole day.
    """
    random_ = Random(f"{name} {seed}")
    day = loads.daily_rates(loads.CHAT_DAY, 24 * 60, mean)
    rates = with_minute_noise(day[int(begin * 60) : int(begin * 60) + hours * 60], random_)
    load = loads.poisson_arrivals(rates, loads.CHAT_LENGTHS, random_)
    pool = reference_pool(small_profile(), math.ceil(rates[0]), startup=startup)
    return make_scenario(name, seed, hours, load, [pool], CHAT_SLO)


def with_minute_noise(rates: list[float], random_: Random) -> list[float]:
    return loads.add_noise(rates, random_, sigma=_MINUTE_NOISE, memory=_MINUTE_MEMORY)


def duration_hours(load: ArrivalTrace) -> float:
    return math.ceil(load.arrivals[-1] / 60.0) / 60.0


def with_sleep_tier(scenario: AutoscalingScenario, tier: SleepTier, sleep_timings: SleepTimings) -> AutoscalingScenario:
    """Returns the scenario with pools whose replicas may sleep.

    - tier: what the autoscaler may do.
    - sleep_timings: how the replicas behave.
    """
    pools = tuple(
        replace(setup, facts=replace(setup.facts, tier=tier), sleep_timings=sleep_timings) for setup in scenario.pools
    )
    return replace(scenario, pools=pools, model=replace(scenario.model, pools=tuple(setup.facts for setup in pools)))


def smooth_chat(seed: int, traces: Path | None = None, *, mean: float = 8.0) -> AutoscalingScenario:
    """Returns a day of conversations with ``mean`` requests per second."""
    del traces
    return chat_scenario("smooth-chat", seed, 0.0, 24, mean)


def smooth_short(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns a day of code completion, bound by prompts; it grows elevenfold within three
    hours.
    """
    del traces
    random_ = Random(f"smooth-short {seed}")
    rates = with_minute_noise(loads.daily_rates(loads.CODE_DAY, 24 * 60, 12.0), random_)
    load = loads.poisson_arrivals(rates, loads.SHORT_OUTPUT_LENGTHS, random_)
    return make_scenario(
        "smooth-short", seed, 24, load, [reference_pool(large_profile(), 2, cost=LARGE_COST)], slo_targets(2.0, 0.2)
    )


def smooth_mixed(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns half a day of conversations on two accelerators."""
    del traces
    random_ = Random(f"smooth-mixed {seed}")
    rates = with_minute_noise(loads.daily_rates(loads.CHAT_DAY, 12 * 60, 12.0), random_)
    pools = [
        reference_pool(small_profile(), 9),
        reference_pool(large_profile(), 0, cost=LARGE_COST, startup=LARGE_COLD_START, minimum=0),
    ]
    return make_scenario(
        "smooth-mixed",
        seed,
        12,
        loads.poisson_arrivals(rates, loads.CHAT_LENGTHS, random_),
        pools,
        CHAT_SLO,
    )


def mixed_shapes(seed: int, pools: Sequence[PoolSetup]) -> AutoscalingScenario:
    """Returns two hours of rising load: short chat and a fifth of documents, routed by shape.

    ``bench/mix`` varies ``pools``.
    """
    random_ = Random(f"mixed-shapes {seed}")
    rates = with_minute_noise(loads.daily_rates(loads.CHAT_DAY, 24 * 60, 14.0)[8 * 60 : 10 * 60], random_)
    chat, documents = (
        loads.poisson_arrivals(rates, lengths, random_)
        for lengths in (loads.SHORT_CHAT_LENGTHS, loads.DOCUMENT_LENGTHS)
    )
    scenario = make_scenario(
        "mixed-shapes",
        seed,
        2,
        loads.mix_loads(chat, documents, lambda at: 0.2, random_),
        list(pools),
        slo_targets(4.0, 0.12),
    )
    return replace(scenario, by_shape=True)


def noisy_hour(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns an hour of conversations at three times the recorded rate; minutes differ by a
    factor of 2.
    """
    random_ = Random(f"noisy-hour {seed}")
    trace = None if traces is None else traces / AZURE_CONVERSATIONS
    if trace is not None and trace.is_file():
        load = loads.densify(read_azure(trace), 3, random_)
    else:
        rates = loads.add_noise([16.2] * 60, random_, sigma=0.22, memory=0.5)
        load = loads.poisson_arrivals([max(9.5, min(25.4, rate)) for rate in rates], loads.CHAT_LENGTHS, random_)
    return make_scenario(
        "noisy-hour", seed, duration_hours(load), load, [reference_pool(small_profile(), 14)], CHAT_SLO
    )


def failures(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns four hours of conversations; a replica crashes every 20 minutes, and 15 % of
    starts fail.
    """
    del traces
    scenario = chat_scenario("failures", seed, 10.0, 4, 8.0, replace(COLD_START, failure_share=0.15))
    return replace(scenario, faults=PlantFaults(crashes=tuple([1_200.0 * number for number in range(1, 12)])))


def slow_engine(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns two hours of conversations; steps take 1.35 times as long after 50 minutes."""
    del traces
    scenario = chat_scenario("slow-engine", seed, 10.0, 2, 8.0)
    return replace(scenario, faults=PlantFaults(slow=((3_000.0, 1.35),)))


def drift(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns two hours at a constant rate; answers grow to 2.5 times their length in 10
    minutes.
    """
    del traces
    random_ = Random(f"drift {seed}")

    def stretch(at: float) -> float:
        return 1.0 + 1.5 * min(1.0, max(0.0, (at - 3_000.0) / 600.0))

    load = loads.poisson_arrivals(with_minute_noise([7.0] * 120, random_), loads.CHAT_LENGTHS, random_, stretch)
    return make_scenario("drift", seed, 2, load, [reference_pool(small_profile(), 7)], CHAT_SLO)


def long_prompts(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns conversations with prompts of 6,800 tokens on average, up to 20,480, at twice the
    recorded rate.

    A step with a full chunk alone takes longer than the ITL target.
    """
    random_ = Random(f"long-prompts {seed}")
    trace = None if traces is None else traces / MOONCAKE_CONVERSATIONS
    if trace is not None and trace.is_file():
        load = loads.densify(spread_ties(read_mooncake(trace)), 2, random_)
    else:
        load = loads.densify(conversation_traffic(10_000, seed=seed), 2, random_)
    return make_scenario(
        "long-prompts",
        seed,
        duration_hours(load),
        load,
        [reference_pool(large_profile(), 7, cost=LARGE_COST)],
        slo_targets(30.0, 0.1),
    )


def mix_move(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns prefill/decode pools; requests turn from conversation to code completion and back."""
    del traces
    random_ = Random(f"mix-move {seed}")
    rates = with_minute_noise(
        [24.0 * (1.0 + 0.25 * math.sin(2 * math.pi * minute / 60.0)) for minute in range(120)], random_
    )

    def short(at: float) -> float:
        return min(1.0, max(0.0, (at - 2_400.0) / 600.0)) - min(1.0, max(0.0, (at - 4_800.0) / 600.0))

    load = loads.mix_loads(
        loads.poisson_arrivals(rates, loads.CHAT_LENGTHS, random_),
        loads.poisson_arrivals(rates, loads.SHORT_OUTPUT_LENGTHS, random_),
        short,
        random_,
    )
    pools = [
        reference_pool(large_profile(), 5, cost=LARGE_COST, role=Role.PREFILL, name="prefill"),
        reference_pool(large_profile(), 3, cost=LARGE_COST, role=Role.DECODE, name="decode"),
    ]
    return make_scenario("mix-move", seed, 2, load, pools, slo_targets(2.0, 0.1))


def missing_metrics(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns four hours of conversations with two outages of all metrics, five minutes each."""
    del traces
    faults = PlantFaults(missing=((5_400.0, 5_700.0), (10_800.0, 11_100.0)))
    return _outage_scenario("missing-metrics", "blind", seed, faults)


def zeroed_metrics(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns four hours of conversations with metrics of 0, twice for five minutes."""
    del traces
    faults = PlantFaults(zeroed=((5_400.0, 5_700.0), (10_800.0, 11_100.0)))
    return _outage_scenario("inconsistent-metrics", "lying", seed, faults)


def step_cold(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    del traces
    return _step_scenario("step-cold", seed, COLD_START)


def step_warm(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    del traces
    return _step_scenario("step-warm", seed, WARM_START)


def on_off(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns an hour of code completion in bursts; a third of its minutes is silent."""
    del traces
    random_ = Random(f"on-off {seed}")
    load = loads.bursty_load(random_)
    return make_scenario(
        "on-off", seed, 1, load, [reference_pool(large_profile(), 3, cost=LARGE_COST)], slo_targets(4.0, 0.2)
    )


def zero_cold(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    del traces
    return _scale_to_zero_scenario("zero-cold", seed, COLD_START, CHAT_SLO)


def zero_warm(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    del traces
    return _scale_to_zero_scenario("zero-warm", seed, WARM_START, replace(CHAT_SLO, ttft_seconds=15.0))


SCENARIOS: Mapping[str, Callable[[int, Path | None], AutoscalingScenario]] = {
    "smooth-chat": smooth_chat,
    "smooth-short": smooth_short,
    "smooth-mixed": smooth_mixed,
    "noisy-hour": noisy_hour,
    "failures": failures,
    "slow-engine": slow_engine,
    "drift": drift,
    "long-prompts": long_prompts,
    "mix-move": mix_move,
    "missing-metrics": missing_metrics,
    "inconsistent-metrics": zeroed_metrics,
    "step-cold": step_cold,
    "step-warm": step_warm,
    "on-off": on_off,
    "zero-cold": zero_cold,
    "zero-warm": zero_warm,
}
"""Each makes a scenario from a seed and the folder of published traces, or None."""


def _outage_scenario(name: str, random_name: str, seed: int, faults: PlantFaults) -> AutoscalingScenario:
    scenario = chat_scenario(random_name, seed, 6.0, 4, 8.0)
    return replace(scenario, name=name, random_name=random_name, faults=faults)


def _step_scenario(name: str, seed: int, startup: StartupDistribution) -> AutoscalingScenario:
    load = loads.poisson_arrivals([2.5] * 20 + [12.5] * 20 + [2.5] * 20, loads.CHAT_LENGTHS, Random(f"step {seed}"))
    scenario = make_scenario(name, seed, 1, load, [reference_pool(small_profile(), 3, startup=startup)], CHAT_SLO)
    return replace(scenario, sudden_changes=(20 * 60.0,))


def _scale_to_zero_scenario(name: str, seed: int, startup: StartupDistribution, slo: SloTargets) -> AutoscalingScenario:
    hours, random_ = 6, Random(f"zero {seed}")
    rates: list[float] = []
    while len(rates) < hours * 60:
        rates += [0.0] * random_.randint(8, 35)
        rates += [random_.choice((0.3, 1.0, 3.0))] * random_.randint(3, 12)
    load = loads.poisson_arrivals(rates[: hours * 60], loads.CHAT_LENGTHS, random_)
    pools = [reference_pool(small_profile(), 0, startup=startup, minimum=0)]
    scenario = make_scenario(name, seed, hours, load, pools, slo)
    before_each = zip([-math.inf, *load.arrivals], load.arrivals, strict=False)
    ends_of_silence = tuple([at for before, at in before_each if at - before > _SILENCE_SECONDS])
    model = replace(scenario.model, patience_seconds=400.0)
    return replace(scenario, model=model, sudden_changes=ends_of_silence)


def drifting_lengths(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns an hour of conversations whose mean lengths drift; neighbours in time are alike."""
    del traces
    load = loads.drifting_arrivals(loads.CONVERSATIONS_BY_BLOCK, Random(f"drifting-lengths {seed}"))
    scenario = make_scenario("drifting-lengths", seed, 1, load, [reference_pool(small_profile(), 15)], CHAT_SLO)
    return replace(scenario, load_policy=LoadPolicy.PROMPT_WORK)


def very_long_prompts(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns an hour with prompts of up to 126,000 tokens; the fleet starts at half its need."""
    del traces
    random_ = Random(f"very-long-prompts {seed}")
    rates = [min(7.9, max(5.4, rate)) for rate in with_minute_noise([6.8] * _MINUTES, random_)]
    load = loads.poisson_arrivals(rates, loads.VERY_LONG_LENGTHS, random_)
    pool = reference_pool(large_profile(), 9, cost=LARGE_COST)
    scenario = make_scenario("very-long-prompts", seed, 1, load, [pool], slo_targets(30.0, 0.1))
    return replace(scenario, load_policy=LoadPolicy.PROMPT_WORK)


def steady_prefill_decode(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns prefill and decode pools at one mix of requests; the rate swings once."""
    del traces
    random_ = Random(f"steady-prefill-decode {seed}")
    rates = [11.0 * (1.0 + 0.35 * math.sin(2 * math.pi * minute / _MINUTES)) for minute in range(_MINUTES)]
    load = loads.poisson_arrivals(with_minute_noise(rates, random_), loads.CHAT_LENGTHS, random_)
    pools = [
        reference_pool(small_profile(), 8, role=Role.PREFILL, name="prefill"),
        reference_pool(small_profile(), 4, role=Role.DECODE, name="decode"),
    ]
    return make_scenario("steady-prefill-decode", seed, 1, load, pools, CHAT_SLO)


def l4_chat(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns an hour of conversations on L4 engines, which hold few sequences."""
    del traces
    random_ = Random(f"l4-chat {seed}")
    load = loads.poisson_arrivals(_hump(8.0, random_), loads.CHAT_LENGTHS, random_)
    pool = reference_pool(builtin_profile("l4-qwen8b"), 9, cost=_L4_COST)
    return make_scenario("l4-chat", seed, 1, load, [pool], slo_targets(4.0, 0.2))


def h100_chat(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns an hour of conversations of many turns on H100 engines."""
    del traces
    random_ = Random(f"h100-chat {seed}")
    load = loads.poisson_arrivals(_hump(17.0, random_), loads.LONG_CHAT_LENGTHS, random_)
    pool = reference_pool(builtin_profile("h100-llama8b"), 8, cost=_H100_COST)
    return make_scenario("h100-chat", seed, 1, load, [pool], slo_targets(4.0, 0.05))


WIDER_SCENARIOS: Final[Mapping[str, Callable[[int, Path | None], AutoscalingScenario]]] = MappingProxyType(
    {
        "drifting-lengths": drifting_lengths,
        "very-long-prompts": very_long_prompts,
        "steady-prefill-decode": steady_prefill_decode,
        "l4-chat": l4_chat,
        "h100-chat": h100_chat,
    }
)
"""Each makes a scenario from a seed; they read no published traces."""
ALL_SCENARIOS: Final[Mapping[str, Callable[[int, Path | None], AutoscalingScenario]]] = MappingProxyType(
    {**SCENARIOS, **WIDER_SCENARIOS}
)
"""The functions of ``SCENARIOS`` and of ``WIDER_SCENARIOS``."""


def _hump(mean: float, random_: Random) -> list[float]:
    rates = [mean * (1.0 - 0.3 * math.cos(2 * math.pi * minute / _MINUTES)) for minute in range(_MINUTES)]
    return with_minute_noise(rates, random_)

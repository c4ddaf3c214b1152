"""The scenarios with goals, each from a seed.

There are smooth days, a noisy hour, crashes, an engine slower than its profile, growing answers and
long prompts. Others have a workload that moves between prefill and decode, missing or zeroed
metrics, steps, bursts and silence. Two scenarios read a published trace (Azure's hour of
conversations, Mooncake's conversations); without the traces' folder they generate similar traffic.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from fairlead.fleet.model import Role, SloTargets
from fairlead_sim.autoscaling import traffic as loads
from fairlead_sim.autoscaling.plant import AutoscalingScenario, PlantFaults
from fairlead_sim.autoscaling.pool import PoolSetup, StartupDistribution
from fairlead_sim.autoscaling.reference_pools import (
    COLD_START,
    LARGE_COLD_START,
    LARGE_COST,
    WARM_START,
    large_profile,
    reference_pool,
    small_profile,
)
from fairlead_sim.autoscaling.scenarios.construction import (
    CHAT_SLO,
    chat_scenario,
    duration_hours,
    make_scenario,
    slo_targets,
    with_minute_noise,
)
from fairlead_sim.workload.generators import conversation_traffic
from fairlead_sim.workload.traces import read_azure, read_mooncake, spread_ties

AZURE_CONVERSATIONS = "AzureLLMInferenceTrace_conv.csv"
MOONCAKE_CONVERSATIONS = "conversation_trace.jsonl"
_SILENCE_SECONDS = 360.0
"""The least time without a request after which the next one is a sudden change."""


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
    """Returns an hour of conversations; for twenty minutes the load is five times the usual."""
    del traces
    return _step_scenario("step-cold", seed, COLD_START)


def step_warm(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns ``step_cold`` with replicas that start within 10 s."""
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
    """Returns six hours with silence and some minutes of few requests; replicas start cold."""
    del traces
    return _scale_to_zero_scenario("zero-cold", seed, COLD_START, CHAT_SLO)


def zero_warm(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns ``zero_cold`` with starts within 10 s and a TTFT target of 15 s."""
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

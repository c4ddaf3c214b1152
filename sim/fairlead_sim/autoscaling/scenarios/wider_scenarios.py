"""Scenarios on which no setting of the autoscaler was chosen: one hour each, from a seed.

Their traffic and engines differ from those of ``reference_scenarios``. Lengths drift, prompts are
very long, a fleet starts too small, and there are two more engine classes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Final

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Role
from fairlead_sim.autoscaling import traffic as loads
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.reference_pools import LARGE_COST, large_profile, reference_pool, small_profile
from fairlead_sim.autoscaling.routing.load_balancing import LoadPolicy
from fairlead_sim.autoscaling.scenarios.construction import CHAT_SLO, make_scenario, slo_targets, with_minute_noise
from fairlead_sim.autoscaling.scenarios.reference_scenarios import SCENARIOS

_H100_COST = 6.0
_L4_COST = 0.8
_MINUTES = 60


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
    """Returns noisy rates by minute that rise to 1.3 times their mean and fall again."""
    rates = [mean * (1.0 - 0.3 * math.cos(2 * math.pi * minute / _MINUTES)) for minute in range(_MINUTES)]
    return with_minute_noise(rates, random_)

"""How many requests of one shape a serving engine carries within the objectives, from its step profile.

It is the knee that the scaling core sizes by (``scaling.capacity``), of one replica and requests of equal length. Below
the knee everything is a matter of degree; what cannot be met by a request that has the engine for itself is no matter of
degree, and the throughput is 0: a sequence that does not fit the memory, a step that is longer than the inter-token
objective, a prompt that takes longer than its first token may.

A pool serves shapes side by side and each takes its share of the engine: r_1/R_1 + r_2/R_2 + … ≤ 1. That is what the
program of the mix assumes, as Mélange does.
"""

from dataclasses import replace

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import SloTargets
from fairlead_autoscaler.core.performance import capacity
from fairlead_autoscaler.core.settings import CapacitySettings


def throughput(
    profile: EngineProfile,
    prompt_tokens: float,
    output_tokens: float,
    objectives: SloTargets,
    settings: CapacitySettings | None = None,
) -> float:
    """Requests per second of this shape on one engine; 0 where it cannot meet the objectives even alone."""
    prompt, output = max(1.0, prompt_tokens), max(1.0, output_tokens)
    limit, itl = objectives.ttft_limit_seconds(prompt), objectives.itl_seconds
    if prompt + output > profile.kv_tokens:
        return 0.0
    if limit is not None and profile.prefill_time(prompt) > limit:
        return 0.0
    alone = profile.step_time(computed=1, sequences=1, resident=round(prompt + output / 2.0))
    if itl is not None and output >= 2.0 and alone > itl:
        return 0.0
    kept = capacity.LatencyTargets(limit, itl, max(1e-4, 1.0 - objectives.target))
    shape = capacity.MeanRequest(prompt, output, prompt_variability=0.0)
    step = capacity.StepModel.from_profile(profile)
    strict = replace(settings or CapacitySettings(), busy_least=0.0)
    return capacity.knee_capacity(step, shape, kept, 1.0, strict).requests_per_second

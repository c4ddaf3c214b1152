"""Throughput of one shape: requests per second of a serving engine within the latency targets.

It is the capacity by which the scaling core sizes (`core.performance.replica_capacity`), for one
replica and requests of equal length. It is 0 if a request that has the engine for itself cannot
meet a target. Its sequence may not fit the memory, its steps may exceed the TPOT target, or its
prompt the TTFT target.

Shapes share an engine: r_1/R_1 + r_2/R_2 + … ≤ 1. The program of the mix assumes that, as Mélange
does.
"""

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import SloTargets
from fairlead_autoscaler.core.performance.replica_capacity import ReplicaModel
from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest, StepModel


def throughput(
    profile: EngineProfile,
    prompt_tokens: float,
    output_tokens: float,
    targets: SloTargets,
) -> float:
    """Returns the requests per second of this shape on one engine; 0 if it cannot meet the targets
    even alone.
    """
    prompt, output = max(1.0, prompt_tokens), max(1.0, output_tokens)
    limit, itl = targets.ttft_limit_seconds(prompt), targets.itl_seconds
    if prompt + output > profile.kv_tokens:
        return 0.0
    if limit is not None and profile.prefill_time(prompt) > limit:
        return 0.0
    alone = profile.step_time(computed=1, sequences=1, resident=round(prompt + output / 2.0))
    if itl is not None and output >= 2.0 and alone > itl:
        return 0.0
    latency_targets = LatencyTargets(limit, itl, max(1e-4, 1.0 - targets.target))
    shape = MeanRequest(prompt, output, prompt_variability=0.0)
    step = StepModel.from_profile(profile)
    return ReplicaModel(step, shape, latency_targets, min_busy=0.0).capacity(1.0).requests_per_second

"""One pool and what is seen of it, for tests of controllers."""

from collections.abc import Sequence

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.types import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
)

POOL = "main"
# A step of 10 ms, 1 ms for each sequence and 0.1 ms for each prompt token: easy numbers.
PROFILE = EngineProfile(
    "simple",
    prefill_token_seconds=1e-4,
    step_seconds=10e-3,
    sequence_seconds=9e-4,
    kv_tokens=100_000,
    max_sequences=100,
    step_tokens=1_000,
)


def single_pool_model(minimum: int = 1, maximum: int = 60, role: Role = Role.SERVE) -> ModelSpec:
    """Returns a model with one pool of ``PROFILE`` engines; TTFT 2 s, ITL 50 ms."""
    facts = PoolSpec(name=POOL, role=role, minimum=minimum, maximum=maximum, profile=PROFILE)
    return ModelSpec(name="model", ttft_seconds=2.0, itl_seconds=0.05, pools=(facts,))


def ready_replica(
    number: int, running: float | None, waiting: float | None = 0.0, kv: float | None = 0.5
) -> ReplicaMetrics:
    """Returns a ready replica; None stands for values that are missing."""
    return ReplicaMetrics(f"engine-{number}", ReplicaState.READY, 600.0, running=running, waiting=waiting, kv_share=kv)


def pool_observation(
    replicas: Sequence[ReplicaMetrics] | None, *, desired: int | None = None, ready: int = 0, pending: int = 0
) -> PoolObservation:
    """Returns a pool of these ready replicas and ``pending`` starting ones.

    replicas: None if their metrics are missing; ``ready`` is their number then.
    """
    if replicas is None:
        return PoolObservation(ready + pending if desired is None else desired, ready, pending)
    starting = [ReplicaMetrics(f"starting-{number}", ReplicaState.PENDING, 30.0) for number in range(pending)]
    asked = len(replicas) + pending if desired is None else desired
    return PoolObservation(asked, len(replicas), pending, replicas=(*replicas, *starting))


def build_observation(
    now: float, pool: PoolObservation, *, arrivals: float | None = 0.0, held: float = 0.0
) -> Observation:
    """Returns an observation with prompts of 1,000 tokens.

    arrivals: None if no gateway answered.
    """
    gateway = None if arrivals is None else GatewayTraffic(arrivals, arrivals * 1_000.0, held)
    return Observation(now, gateway, {POOL: pool})

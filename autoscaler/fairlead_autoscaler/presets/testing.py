"""One pool and what is seen of it, for tests of controllers."""

from collections.abc import Sequence

from fairlead.fleet import Role
from fairlead.profile import EngineProfile
from fairlead_autoscaler.scaling.values import (
    GatewaySeen,
    Observation,
    PoolFacts,
    PoolSeen,
    ReplicaSeen,
    ReplicaState,
    ScaledModel,
)

POOL = "main"
# A step of 10 ms and 1 ms for each sequence, and 0.1 ms for each token of a prompt: numbers to do in the head.
PROFILE = EngineProfile(
    "simple",
    prefill_token_seconds=1e-4,
    step_seconds=10e-3,
    sequence_seconds=9e-4,
    kv_tokens=100_000,
    max_sequences=100,
    step_tokens=1_000,
)


def one_pool(minimum: int = 1, maximum: int = 60, role: Role = Role.SERVE) -> ScaledModel:
    """A model with one pool of ``PROFILE`` engines; TTFT 2 s, ITL 50 ms."""
    facts = PoolFacts(name=POOL, role=role, minimum=minimum, maximum=maximum, profile=PROFILE)
    return ScaledModel(name="model", ttft_seconds=2.0, itl_seconds=0.05, pools=(facts,))


def replica(number: int, running: float | None, waiting: float | None = 0.0, kv: float | None = 0.5) -> ReplicaSeen:
    """A ready replica; None is what could not be read."""
    return ReplicaSeen(f"engine-{number}", ReplicaState.READY, 600.0, running=running, waiting=waiting, kv_share=kv)


def pool_seen(
    replicas: Sequence[ReplicaSeen] | None, *, desired: int | None = None, ready: int = 0, pending: int = 0
) -> PoolSeen:
    """A pool of these ready replicas and ``pending`` starting ones; ``replicas`` None: nobody could be asked, ``ready`` counts."""
    if replicas is None:
        return PoolSeen(ready + pending if desired is None else desired, ready, pending)
    starting = [ReplicaSeen(f"starting-{number}", ReplicaState.PENDING, 30.0) for number in range(pending)]
    asked = len(replicas) + pending if desired is None else desired
    return PoolSeen(asked, len(replicas), pending, replicas=(*replicas, *starting))


def look(now: float, pool: PoolSeen, *, arrivals: float | None = 0.0, held: float = 0.0) -> Observation:
    """One look; ``arrivals`` None: no gateway answered. A prompt has 1,000 tokens."""
    gateway = None if arrivals is None else GatewaySeen(arrivals, arrivals * 1_000.0, held)
    return Observation(now, gateway, {POOL: pool})

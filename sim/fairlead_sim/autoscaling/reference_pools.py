"""The pools, startup times and SLOs that the scenarios share."""

from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.types import ModelSpec, PoolSpec
from fairlead_sim.autoscaling.pool import PoolSetup, StartupDistribution

TTFT_BOUNDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
ITL_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""The bounds of vLLM's histograms; none is at a TTFT target of 2 or 3 s."""
PATIENCE_SECONDS = 60.0
MAX_REPLICAS = 60
SMALL_COST = 1.0
LARGE_COST = 3.7
COLD_START = StartupDistribution()
WARM_START = StartupDistribution(10.0, 0.0)
LARGE_COLD_START = StartupDistribution(90.0, 270.0)


def small_profile() -> EngineProfile:
    return step_profile("S", StepCosts(28e-3, 1e-4, 2.2e-7, 3.3e-4), step_tokens=512, sequences=64, kv_tokens=40_000)


def large_profile() -> EngineProfile:
    return step_profile("L", StepCosts(12e-3, 4e-5, 8.7e-8, 9e-5), step_tokens=1_024, sequences=256, kv_tokens=400_000)


def reference_pool(
    profile: EngineProfile,
    initial: int,
    *,
    cost: float = SMALL_COST,
    role: Role = Role.SERVE,
    startup: StartupDistribution = COLD_START,
    minimum: int = 1,
    name: str | None = None,
) -> PoolSetup:
    """Returns a pool, named after its profile, whose startup times are known to the autoscaler."""
    facts = PoolSpec(
        name=name or profile.name,
        role=role,
        cost_per_hour=cost,
        minimum=minimum,
        maximum=MAX_REPLICAS,
        profile=profile,
        startup_p50_seconds=startup.quantile(0.5),
        startup_p90_seconds=startup.quantile(0.9),
    )
    return PoolSetup(facts, profile, startup, initial)


def reference_model(
    pools: Sequence[PoolSetup], ttft: float | None, itl: float | None, *, patience: float = PATIENCE_SECONDS
) -> ModelSpec:
    """Returns the model of these pools."""
    return ModelSpec(
        name="model",
        ttft_seconds=ttft,
        itl_seconds=itl,
        pools=tuple([setup.facts for setup in pools]),
        patience_seconds=patience,
        ttft_bounds=TTFT_BOUNDS,
        itl_bounds=ITL_BOUNDS,
    )


@dataclass(frozen=True, slots=True)
class StepCosts:
    """The coefficients of an engine's step time in autoscaling studies, in seconds.

    A step takes ``base + sequence·batch + kv·resident + prompt·prompt tokens``.
    """

    base: float
    sequence: float
    kv: float
    prompt: float


def step_profile(name: str, costs: StepCosts, *, step_tokens: int, sequences: int, kv_tokens: int) -> EngineProfile:
    """Returns the profile of an engine with these steps.

    An ``EngineProfile`` also counts the decoded token of each sequence as computed, so
    ``sequence_seconds`` is lower by the price of a prompt token.
    """
    return EngineProfile(
        name,
        prefill_token_seconds=costs.prompt,
        step_seconds=costs.base,
        sequence_seconds=costs.sequence - costs.prompt,
        resident_token_seconds=costs.kv,
        kv_tokens=kv_tokens,
        max_sequences=sequences,
        step_tokens=step_tokens,
    )

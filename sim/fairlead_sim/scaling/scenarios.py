"""What an autoscaler is put through: each kind of scenario from a seed."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

from fairlead.fleet import Role
from fairlead.profile import EngineProfile
from fairlead_autoscaler.scaling.values import PoolFacts, ScaledModel
from fairlead_sim.azure import read_azure
from fairlead_sim.scaling import load as loads
from fairlead_sim.scaling.book import Load
from fairlead_sim.scaling.plant import Scenario
from fairlead_sim.scaling.pool import PoolSetup, StartUp
from fairlead_sim.scaling.profile import stepping

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
"""The edges of vLLM's own histograms; none lies at a TTFT objective of 2 or 3 s."""
AZURE_CONVERSATIONS = "AzureLLMInferenceTrace_conv.csv"
PATIENCE_SECONDS = 60.0
MOST_REPLICAS = 60
COLD = StartUp()
WARM = StartUp(10.0, 0.0)
LARGE_COLD = StartUp(90.0, 270.0)


def small() -> EngineProfile:
    """Pool S: an 8B model on an A10G."""
    return stepping("S", 28e-3, 1e-4, 2.2e-7, 3.3e-4, step_tokens=512, sequences=64, kv_tokens=40_000)


def large() -> EngineProfile:
    """Pool L: an 8B model on an A100 with 80 GB."""
    return stepping("L", 12e-3, 4e-5, 8.7e-8, 9e-5, step_tokens=1_024, sequences=256, kv_tokens=400_000)


def pool(
    profile: EngineProfile,
    initial: int,
    *,
    cost: float = 1.0,
    role: Role = Role.SERVE,
    startup: StartUp = COLD,
    minimum: int = 1,
    name: str | None = None,
) -> PoolSetup:
    """A pool with start-up times as they are known, after its profile."""
    facts = PoolFacts(
        name=name or profile.name,
        role=role,
        cost_per_hour=cost,
        minimum=minimum,
        maximum=MOST_REPLICAS,
        profile=profile,
        startup_p50_seconds=startup.quantile(0.5),
        startup_p90_seconds=startup.quantile(0.9),
    )
    return PoolSetup(facts, profile, startup, initial)


def model(pools: Sequence[PoolSetup], ttft: float, itl: float, *, patience: float = PATIENCE_SECONDS) -> ScaledModel:
    """The model that these pools serve."""
    return ScaledModel(
        name="model",
        ttft_seconds=ttft,
        itl_seconds=itl,
        pools=tuple([one.facts for one in pools]),
        patience_seconds=patience,
        ttft_bounds=TTFT_BOUNDS,
        itl_bounds=ITL_BOUNDS,
    )


def _scenario(
    name: str, seed: int, hours: float, load: Load, pools: Sequence[PoolSetup], ttft: float, itl: float
) -> Scenario:
    return Scenario(name, seed, hours * 3600.0, model(pools, ttft, itl), tuple(pools), load)


def smooth_chat(seed: int, traces: Path | None = None, *, hours: int = 24, mean: float = 8.0) -> Scenario:
    """A day of conversations."""
    del traces
    draw = Random(f"smooth-chat {seed}")
    rates = loads.noisy(loads.levels(loads.CHAT_DAY, hours * 60, mean), draw, sigma=0.06, memory=0.3)
    initial = math.ceil(rates[0] / 1.1)
    load = loads.poisson(rates, loads.CHAT, draw)
    return _scenario("smooth-chat", seed, hours, load, [pool(small(), initial)], 3.0, 0.15)


def noisy_hour(seed: int, traces: Path | None = None) -> Scenario:
    """A real hour of conversations, three times as dense; without the trace, one of its shape."""
    draw = Random(f"noisy-hour {seed}")
    trace = None if traces is None else traces / AZURE_CONVERSATIONS
    if trace is not None and trace.is_file():
        load = loads.denser(read_azure(trace), 3, draw)
        hours = math.ceil(load.arrivals[-1] / 60.0) / 60.0
    else:
        rates = loads.noisy([16.2] * 60, draw, sigma=0.22, memory=0.5)
        load, hours = loads.poisson([max(9.5, min(25.4, rate)) for rate in rates], loads.CHAT, draw), 1.0
    return _scenario("noisy-hour", seed, hours, load, [pool(small(), 14)], 3.0, 0.15)


def step_cold(seed: int, traces: Path | None = None) -> Scenario:
    """Five times the load at once, for twenty minutes, unforeseen."""
    del traces
    return _step("step-cold", seed, COLD)


def step_warm(seed: int, traces: Path | None = None) -> Scenario:
    """The same where replicas start within 10 s."""
    del traces
    return _step("step-warm", seed, WARM)


def _step(name: str, seed: int, startup: StartUp) -> Scenario:
    load = loads.poisson([2.5] * 20 + [12.5] * 20 + [2.5] * 20, loads.CHAT, Random(f"step {seed}"))
    return _scenario(name, seed, 1.0, load, [pool(small(), 3, startup=startup)], 3.0, 0.15)


KINDS: Mapping[str, Callable[[int, Path | None], Scenario]] = {
    "smooth-chat": smooth_chat,
    "noisy-hour": noisy_hour,
    "step-cold": step_cold,
    "step-warm": step_warm,
}
"""Each makes a scenario from a seed and the folder of the published traces, None where it is not at hand."""

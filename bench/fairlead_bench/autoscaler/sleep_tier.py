"""The autoscaler with a tier of sleeping replicas, compared with the same without: latency, cost,
and number of starts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fairlead_autoscaler.core import ScalingCore, SleepTier
from fairlead_bench.results import NO_GOALS, ResultRow, parse_options, write_results
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.pool import SleepTimings
from fairlead_sim.autoscaling.reference_pools import COLD_START
from fairlead_sim.autoscaling.scenarios import SCENARIOS, with_sleep_tier

WAKE_SECONDS: Final = 10.0
PRICES: Final = MappingProxyType({"a tenth": 0.1, "the whole": 1.0})
ScenarioMaker = Callable[[int, Path | None], AutoscalingScenario]

QUICK_CASES: Final = SleepTier(8, wake_seconds=WAKE_SECONDS)


def scale_from_zero_scenario(seed: int, traces: Path | None = None) -> AutoscalingScenario:
    """Returns a scenario of silence and cold starts, with 15 s for a first token, which a sleeping
    replica can meet."""
    found = SCENARIOS["zero-warm"](seed, traces)
    median, ninth_decile = COLD_START.quantile(0.5), COLD_START.quantile(0.9)
    pools = tuple(
        replace(
            pool,
            startup=COLD_START,
            facts=replace(pool.facts, startup_p50_seconds=median, startup_p90_seconds=ninth_decile),
        )
        for pool in found.pools
    )
    return replace(found, pools=pools, model=replace(found.model, pools=tuple(pool.facts for pool in pools)))


CASES: Final[Mapping[str, tuple[ScenarioMaker, SleepTier]]] = MappingProxyType(
    {
        "step, up to 8 asleep": (SCENARIOS["step-cold"], QUICK_CASES),
        "step, 10 always asleep": (SCENARIOS["step-cold"], SleepTier(12, least=10, wake_seconds=WAKE_SECONDS)),
        "from zero within 15 s, up to 8 asleep": (scale_from_zero_scenario, QUICK_CASES),
        "on-off, up to 8 asleep": (SCENARIOS["on-off"], QUICK_CASES),
        "noisy-hour, up to 8 asleep": (SCENARIOS["noisy-hour"], QUICK_CASES),
        "drift, up to 8 asleep": (SCENARIOS["drift"], QUICK_CASES),
    }
)


def rows(seeds: Sequence[int], traces: Path | None) -> Iterator[ResultRow]:
    """Returns the rows of all cases with all seeds."""
    for name, (make, tier) in CASES.items():
        for seed in seeds:
            scenario = make(seed, traces)
            yield from compare_tiers(f"{name}, seed {seed}", scenario, tier)


def compare_tiers(name: str, scenario: AutoscalingScenario, tier: SleepTier) -> Iterator[ResultRow]:
    """Yields rows of one scenario with the tier, at each price of sleep, compared with none."""
    without = run_controller(scenario, ScalingCore(scenario.model))
    with_: dict[str, ControllerOutcome] = {}
    for price, share in PRICES.items():
        tiered = with_sleep_tier(scenario, tier, SleepTimings(WAKE_SECONDS, share))
        with_[price] = run_controller(tiered, ScalingCore(tiered.model))
    first = next(iter(with_.values()))  # what sleep costs changes nothing of what is decided
    share, other = first.attainment, without.attainment
    yield NO_GOALS.ratio(f"{name}: within the objectives", "share", share, "no tier", other)
    gone, were = (float(one.abandoned + one.lost) for one in (first, without))
    yield NO_GOALS.ratio(f"{name}: given up or lost", "requests", gone, "no tier", were)
    starts, before = (float(sum(map(len, one.starts.values()))) for one in (first, without))
    yield NO_GOALS.ratio(f"{name}: starts", "starts", starts, "no tier", before)
    for price, found in with_.items():
        metric = f"{name}: cost, asleep at {price} of the price"
        yield NO_GOALS.ratio(metric, "replica-hours", found.cost, "no tier", without.cost)


def main(arguments: Sequence[str]) -> int:
    """Runs each case with and without the tier, prints the table and writes it."""
    given = parse_options("asleep", __doc__, arguments, seeds=[1, 2, 3], traces=Path)
    write_results("asleep", list(rows(given.seeds, given.traces)), seed=given.seeds[0], file=given.out)
    return 0

"""One run of the core in one scenario, measured: latency targets, cost, changes."""

from dataclasses import dataclass
from time import perf_counter

from fairlead_bench.outside_plant.core_seam import RESCUE_SECONDS, ControllerFactory, RescuedReplay
from fairlead_bench.outside_plant.families import FAMILIES
from fairlead_bench.outside_plant.offline_optimum import OfflineOptimum, OptimumFile
from fairlead_bench.outside_plant.plant import Plant, PlantOptions, PlantRecord
from fairlead_bench.outside_plant.scenario import Scenario

WINDOW_AFTERMATH_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class CoreMeasurement:
    """The result of one run.

    share: of requests with TTFT and mean gap within the targets
    ttft_share, gap_share: of requests within each target
    unservable: late requests that no start ordered at the first look could have served
    window_share: the least share in a window of faulty metrics and five minutes after it
    optimum: None if it is not known
    """

    family: str
    seed: int
    gateway_rule: str
    requests: int
    share: float
    ttft_share: float
    gap_share: float
    unservable: int
    abandoned: int
    lost: int
    replica_hours: float
    changes_per_hour: float
    max_desired: int
    optimum: OfflineOptimum | None
    wall_seconds: float
    window_share: float | None = None

    @property
    def servable_share(self) -> float:
        """Returns the share within the targets among the requests that could have been served."""
        return self.share * self.requests / max(self.requests - self.unservable, 1)

    @property
    def cost_ratio(self) -> float | None:
        """Returns the cost divided by that of the offline optimum."""
        return None if self.optimum is None else self.replica_hours / self.optimum.replica_hours

    def describe(self) -> str:
        """Returns the line of the run."""
        ratio = "–" if self.cost_ratio is None else f"{self.cost_ratio:.3f}"
        optimum = "–" if self.optimum is None else f"{self.optimum.replica_hours:.2f}"
        return (
            f"{self.family:15} seed {self.seed:<7} {self.gateway_rule:10} share {self.share:.4f} "
            f"servable {self.servable_share:.4f} (ttft {self.ttft_share:.4f} gap {self.gap_share:.4f}) "
            f"apart {self.unservable:<4} cost {self.replica_hours:7.2f} ÷ {optimum:>6} = {ratio:5} "
            f"changes/h {self.changes_per_hour:5.1f} max {self.max_desired:<2} abandoned {self.abandoned:<4} "
            f"lost {self.lost:<3} {self.wall_seconds:.1f} s"
        )


def measure(
    family: str, seed: int, options: PlantOptions, factory: ControllerFactory, optima: OptimumFile | None
) -> CoreMeasurement:
    """Returns the measurement of a run. ``optima`` is None where no optimum is wanted."""
    scenario = FAMILIES[family](seed)
    optimum = None if optima is None else optima.find(scenario, options)
    began = perf_counter()
    record = Plant(scenario, options).run(factory(scenario))
    wall_seconds = perf_counter() - began
    requests = scenario.requests
    late = requests.late(scenario.ttft, scenario.gap)
    count = len(requests)
    ttft_share = sum(ttft <= scenario.ttft for ttft in requests.ttft) / count
    gap_share = sum(gap <= scenario.gap for gap in requests.gap) / count
    return CoreMeasurement(
        family=family,
        seed=seed,
        gateway_rule=options.gateway_rule,
        requests=count,
        share=1.0 - sum(late) / count,
        ttft_share=ttft_share,
        gap_share=gap_share,
        unservable=_unservable(scenario, options, record, late),
        abandoned=record.abandoned,
        lost=record.lost,
        replica_hours=record.replica_hours,
        changes_per_hour=record.changes / (scenario.seconds / 3600.0),
        max_desired=max(max(sizes) for sizes in record.desired),
        optimum=optimum,
        wall_seconds=wall_seconds,
        window_share=_window_share(scenario, late),
    )


def _window_share(scenario: Scenario, late: list[bool]) -> float | None:
    """Returns the least share of requests in time, of those of a window and five minutes after it.

    None if all metrics were right.
    """
    shares = []
    for window in scenario.windows:
        end = window.end + WINDOW_AFTERMATH_SECONDS
        found = [
            is_late
            for arrival, is_late in zip(scenario.requests.arrivals, late, strict=True)
            if window.start <= arrival < end
        ]
        shares.append(1.0 - sum(found) / max(len(found), 1))
    return min(shares, default=None)


def _unservable(scenario: Scenario, options: PlantOptions, record: PlantRecord, late: list[bool]) -> int:
    """Returns how many requests soon after a sudden change no start could have served.

    They are late, and stay late in a run that orders the maximum at the first look after it.
    """
    if not scenario.shocks:
        return 0
    Plant(scenario, options).run(RescuedReplay(scenario, record.desired))
    rescued = scenario.requests.late(scenario.ttft, scenario.gap)
    return sum(
        is_late and is_late_still and any(shock <= arrival < shock + RESCUE_SECONDS for shock in scenario.shocks)
        for arrival, is_late, is_late_still in zip(scenario.requests.arrivals, late, rescued, strict=True)
    )

"""Settings of the scaling core, in one group for each stage.

One set serves every model that was measured (docs/decisions/0057). Before you change a value,
compare a replay with the old one (`fairlead replay-scaling`).

Outside of the core a setting has its flat name: on the command line, in recordings, and where
outside tools drive the core. No two groups share a field name.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fairlead.errors import BadInput


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """Settings of the load level: bins, change points and trend. Shares are 0..1."""

    bin_seconds: float = 30.0
    level_seconds: float = 300.0
    short_bins: int = 3
    recent_seconds: float = 30.0
    past_seconds: float = 2_400.0
    change_sigmas: float = 5.0
    change_share: float = 0.25
    change_odds: float = 6.0
    trend_t: float = 4.0
    trend_seconds: float = 300.0
    trend_bins: int = 8


@dataclass(frozen=True, slots=True)
class BurstSettings:
    """Settings of recurring bursts, and of errors of the forecast."""

    recur_share: float = 3.0
    burst_room: float = 1.6
    burst_few: float = 4.0
    burst_spare: float = 0.03
    clump_seconds: float = 600.0
    clump_least: float = 6.0
    deviation_guess: float = 0.08
    deviation_few: float = 4.0
    deviation_most: float = 0.5
    fall_sigmas: float = 3.0


@dataclass(frozen=True, slots=True)
class LengthSettings:
    """Settings of prompt and output lengths: two means, drift and shifts."""

    length_seconds: float = 60.0
    length_slow_seconds: float = 900.0
    drift_sigmas: float = 3.0
    drift_most: float = 2.0
    turn_times: float = 1.5
    turn_sigmas: float = 5.0


@dataclass(frozen=True, slots=True)
class CapacitySettings:
    """Settings of the capacity of one replica at the SLO."""

    busy_least: float = 0.2


@dataclass(frozen=True, slots=True)
class SpeedSettings:
    """Settings of the measured engine speed."""

    speed_seconds: float = 20.0
    speed_odd: float = 0.12
    speed_least: float = 0.5
    speed_most: float = 3.0


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """Settings of the error budget, and of what counted misses teach."""

    goal_least: float = 0.25
    goal_usual: float = 1.3
    goal_most: float = 2.5
    budget_spend_seconds: float = 3_600.0
    evidence_seconds: float = 1_800.0
    evidence_prior: float = 10.0
    short_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class DemandSettings:
    """Settings of demand: forecast horizon and backlog."""

    ahead_quantile: float = 0.5
    ready_extra_seconds: float = 10.0
    queue_usual: float = 2.0
    drain_seconds: float = 60.0
    backlog_seconds: float = 60.0
    backlog_ahead: float = 1.0


@dataclass(frozen=True, slots=True)
class HedgeSettings:
    """Settings of hedged starts: how many extra replicas are started, and when."""

    hedge: float = 2.0
    hedge_overloaded: float = 3.0
    overloaded_share: float = 1.25
    hedge_missing_share: float = 0.1
    hedge_lone_share: float = 0.25
    hedge_lone_slow: float = 1.5


@dataclass(frozen=True, slots=True)
class AllocationSettings:
    """Settings of the allocation of demand to several pools."""

    start_price: float = 0.3
    switch_starts: float = 1.0
    mix_seconds: float = 300.0
    mix_switch_share: float = 0.15


@dataclass(frozen=True, slots=True)
class ScaleDownSettings:
    """Settings of the stabilization window and of steps down."""

    window_seconds: float = 300.0
    window_least_seconds: float = 60.0
    window_startups: float = 2.0
    lasting_seconds: float = 60.0
    down_room: float = 0.6
    down_every_seconds: float = 60.0
    down_least_seconds: float = 15.0
    down_share: float = 0.5


@dataclass(frozen=True, slots=True)
class SignalSettings:
    """Settings for signals that are missing or inconsistent, and for gaps between ticks."""

    restart_seconds: float = 120.0
    doubt_seconds: float = 315.0
    missing_hold_seconds: float = 60.0
    missing_rise: float = 1.25
    gap_intervals: float = 3.5
    inconsistent_share: float = 0.5
    max_inconsistent_seconds: float = 900.0


@dataclass(frozen=True, slots=True)
class IdleSettings:
    """Prices that decide about scale to zero and about sleeping replicas."""

    cold_start_price: float = 4.0
    sleep_price: float = 0.1


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """All settings of the scaling core.

    freeze: nothing changes while it is set; the plan still says what would change.
    """

    freeze: bool = False
    load: LoadSettings = field(default_factory=LoadSettings)
    bursts: BurstSettings = field(default_factory=BurstSettings)
    lengths: LengthSettings = field(default_factory=LengthSettings)
    capacity: CapacitySettings = field(default_factory=CapacitySettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    demand: DemandSettings = field(default_factory=DemandSettings)
    hedging: HedgeSettings = field(default_factory=HedgeSettings)
    allocation: AllocationSettings = field(default_factory=AllocationSettings)
    scale_down: ScaleDownSettings = field(default_factory=ScaleDownSettings)
    signals: SignalSettings = field(default_factory=SignalSettings)
    idle: IdleSettings = field(default_factory=IdleSettings)

    def flat(self) -> dict[str, float]:
        """Returns all values by their flat names."""
        values: dict[str, float] = {"freeze": self.freeze}
        for group in _GROUPS:
            values |= dataclasses.asdict(getattr(self, group))
        return values

    def with_values(self, values: Mapping[str, Any]) -> "ScalingSettings":
        """Returns the settings with other values, by flat names.

        Raises BadInput for a name that no setting has.
        """
        changes: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if name not in _GROUP_OF:
                raise BadInput(f"{name}: no setting has this name", field=name)
            changes.setdefault(_GROUP_OF[name], {})[name] = value
        plain = changes.pop("", {})
        groups = {group: replace(getattr(self, group), **named) for group, named in changes.items()}
        return replace(self, **plain, **groups)


_GROUPS = tuple(item.name for item in dataclasses.fields(ScalingSettings) if item.name != "freeze")
_GROUP_OF = {"freeze": ""} | {
    item.name: group for group in _GROUPS for item in dataclasses.fields(getattr(ScalingSettings(), group))
}
"""The group of each setting, by its flat name."""
DEFAULT_VALUES: Mapping[str, float] = ScalingSettings().flat()
"""The default of each setting, by its flat name."""

"""Settings of the scaling core: what a replay or an outside tool may change.

One set serves every model that was measured (docs/decisions/0057). Before you change a value,
compare a replay with the old one (`fairlead replay-scaling`). Other values are constants of
the modules that use them. docs/reference/autoscaler.md says what a larger value means.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fairlead.errors import BadInput


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """All settings of the scaling core.

    freeze: nothing changes while it is set; the plan still says what would change.
    """

    freeze: bool = False
    level_seconds: float = 300.0
    deviation_guess: float = 0.08
    burst_room: float = 1.6
    ahead_quantile: float = 0.5
    min_goal: float = 0.25
    goal_usual: float = 1.3
    max_goal: float = 2.5
    budget_spend_seconds: float = 3_600.0
    evidence_seconds: float = 1_800.0
    evidence_prior: float = 10.0
    drain_seconds: float = 60.0
    hedge: float = 2.0
    hedge_overloaded: float = 3.0
    window_seconds: float = 300.0
    window_startups: float = 2.0
    min_window_seconds: float = 60.0
    lasting_seconds: float = 60.0
    down_room: float = 0.6
    down_every_seconds: float = 60.0
    down_share: float = 0.5
    restart_seconds: float = 120.0
    doubt_seconds: float = 315.0
    missing_hold_seconds: float = 60.0
    missing_rise: float = 1.25
    cold_start_price: float = 4.0

    def flat(self) -> dict[str, float]:
        return dataclasses.asdict(self)

    def with_values(self, values: Mapping[str, Any]) -> "ScalingSettings":
        """Returns the settings with other values, by name.

        Raises BadInput for a name that no setting has.
        """
        for name in values:
            if name not in DEFAULT_VALUES:
                raise BadInput(f"{name}: no setting has this name", field=name)
        return replace(self, **values)


DEFAULT_VALUES: Mapping[str, float] = ScalingSettings().flat()
"""The default of each setting, by name."""

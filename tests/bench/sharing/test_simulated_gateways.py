"""The benchmark of what gateways know of one another carries the goals that are checked in."""

from fairlead_bench.results import load_goals
from fairlead_bench.sharing.simulated_gateways import (
    CONVERSATIONS,
    SHORT,
    SharingFigures,
    rows,
)

GOALS = load_goals("sharing")


def found(share: float, apart: float, *, failures: int = 0) -> list[str]:
    """Returns the goals that fail with these shares of cached tokens; all others find 80 %."""

    def runs(name: str) -> list[SharingFigures]:
        cached = share if "share" in name else apart if "apart" in name else 0.8
        return [SharingFigures(cached, 1.0, failures)]

    table = rows({name: runs(name) for name in CONVERSATIONS}, {name: runs(name) for name in SHORT})
    assert {row.metric: row.goal for row in table if row.goal} == GOALS
    return [row.metric for row in table if not row.holds]


def test_rows_hold_within_their_goals_only() -> None:
    goals = list(GOALS)
    assert found(0.8, 0.7) == []
    assert found(0.8, 0.77) == goals[:1]
    assert found(0.775, 0.5) == goals[1:2]
    assert found(0.76, 0.79) == goals[:5]
    assert found(0.8, 0.7, failures=1) == goals[5:]

"""The benchmark of what gateways know of one another carries the goals that are checked in."""

from fairlead_bench.results import load_goals
from fairlead_bench.sharing.simulated_gateways import (
    CONVERSATIONS,
    SHORT,
    GatewayTopology,
    SharingFigures,
    rows,
    simulate_conversations,
    simulate_short_prompts,
)
from fairlead_sim.gateways.gateway_cluster import NO_SHARING, SharingOptions
from fairlead_sim.workload.generators import conversation_traffic
from fairlead_sim.workload.traces import at_rate
from fairlead_testing.pytest_hooks.nightly import shortened

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


def test_both_kinds_of_traffic_run_and_fail_nothing() -> None:
    requests = at_rate(conversation_traffic(shortened(600, 200), seed=1), 8.0)
    for form in (GatewayTopology(1, NO_SHARING, True), GatewayTopology(3, SharingOptions(index=True), True)):
        figures = simulate_conversations(requests, form, 0, share=0.2)
        assert figures.failures == 0
        assert 0.0 < figures.cached < 1.0
    assert simulate_short_prompts(GatewayTopology(3, NO_SHARING), 0).failures == 0

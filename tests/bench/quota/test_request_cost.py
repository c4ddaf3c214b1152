"""The cost of limits in one process: requests are reserved and settled, each figure is a row."""

from fairlead.tenants.model import Enforcement
from fairlead_bench.quota.request_cost import LimitedRequests, RequestCost, cost_rows
from fairlead_bench.results import load_goals


def test_measured_requests_use_every_limit_of_their_tenant() -> None:
    for enforcement in Enforcement:
        measured = LimitedRequests(enforcement, 1)
        contexts = measured.contexts(20)
        assert measured.pass_seconds(contexts) > 0.0
        (limits,) = measured.gate.tenants.values()
        used = {name: leased.current.spent for name, leased in limits.leased.items()}
        assert used == {
            "requests|Minute|*|*": 20,
            "tokens|Minute|*|*": 20 * (512 + 128),
            "tokens|Day|*|*": 20 * (512 + 128),
            "cost|Month|*|*": 20 * (256 * 400 + 256 * 100 + 128 * 1_200),
        }
        assert all(leased.current.busy == 0 for leased in limits.leased.values())
        assert len({context.id for context in contexts}) == 20
        measured.close()


def test_a_request_beyond_its_goal_does_not_hold() -> None:
    cost = RequestCost(5.5, 1.0, 0.2, 3.0, 1.5, 13.0, True)
    found = {row.metric: row for row in cost_rows(cost)}
    with_goals = {name for name, row in found.items() if row.goal is not None}
    assert with_goals <= set(load_goals("tenant-instructions"))
    assert not found["limits of a request"].holds
    assert found["lookup of a caller, 10,000 tenants × 5 keys"].holds

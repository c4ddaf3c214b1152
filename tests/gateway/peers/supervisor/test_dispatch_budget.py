"""The rates at which dispatches of other gateways are applied."""

from functools import partial

from fairlead_gateway.peers.peer_messages import SentPrompt
from fairlead_gateway.peers.supervisor.peer_exchange import DispatchBudget

small_budget = partial(DispatchBudget, max_senders=3, rates=(1_280, 2_560), burst_seconds=1.0, history_seconds=3.0)
ONE: tuple[SentPrompt, ...] = (("e-0", b"", 1, 0),)
"""Costs 128 bytes: 10 a second for one sender, 20 for all."""


def admitted(budget: DispatchBudget, sender: bytes, now: float, *, is_live: bool = True, batches: int = 100) -> int:
    return sum(budget.admits(sender, ONE, now, is_live=is_live) for _ in range(batches))


def test_flood_of_one_sender_is_dropped_and_counted() -> None:
    budget = small_budget()
    assert admitted(budget, b"flood", 0.0) == 10
    assert budget.dropped == 90
    assert admitted(budget, b"flood", 0.5) == 5
    assert admitted(budget, b"other", 0.5) == 10


def test_sender_within_its_rate_loses_nothing_beside_a_flood() -> None:
    budget = small_budget()
    for tenth in range(100):
        admitted(budget, b"flood", tenth / 10)
        assert admitted(budget, b"gateway", tenth / 10, batches=1) == 1


def test_ever_new_names_share_one_budget() -> None:
    budget = small_budget()
    admissions = [admitted(budget, f"name-{number}".encode(), 0.0) for number in range(1_000)]
    assert sum(admissions) < 40
    assert sum(admissions[4:]) == 0
    later = [admitted(budget, f"name-{number}".encode(), 1.0) for number in range(1_000, 2_000)]
    assert sum(later) < 40


def test_known_sender_keeps_its_share_when_names_are_used_up() -> None:
    budget = small_budget()
    assert admitted(budget, b"gateway", 0.0, batches=1) == 1
    for number in range(1_000):
        admitted(budget, f"name-{number}".encode(), 0.0)
    assert admitted(budget, b"gateway", 0.0, batches=3) == 3


def test_dispatches_read_back_at_the_start_have_a_larger_budget() -> None:
    budget = small_budget()
    assert admitted(budget, b"gateway", 0.0, is_live=False) == 30
    assert admitted(budget, b"gateway", 0.0) == 10


def test_batch_larger_than_any_of_a_gateway_is_dropped_whole() -> None:
    budget = DispatchBudget()
    assert budget.admits(b"gateway", [("e-0", bytes(65_536), 1, 0)], 0.0, is_live=True)
    assert not budget.admits(b"gateway", [("e-0", bytes(131_072), 1, 0)], 0.0, is_live=True)
    assert budget.dropped == 1


def test_batch_above_a_small_share_is_admitted_and_paid_off_later() -> None:
    budget = small_budget()
    large: tuple[SentPrompt, ...] = (("e-0", bytes(2_560 - 128), 1, 0),)
    assert budget.admits(b"gateway", large, 0.0, is_live=True)
    assert admitted(budget, b"gateway", 1.0) == 0
    assert admitted(budget, b"gateway", 2.0) == 10


def test_batch_without_prompts_costs_nothing() -> None:
    budget = small_budget()
    assert all(budget.admits(b"gateway", (), 0.0, is_live=True) for _ in range(100))


def test_reports_of_loads_have_a_budget_of_their_own() -> None:
    budget = small_budget(rows=(100, 200))
    assert sum(budget.admits_loads(b"flood", 10, 0.0) for _ in range(50)) == 10
    assert budget.dropped_loads == 40
    assert budget.admits_loads(b"gateway", 10, 0.0)
    assert admitted(budget, b"flood", 0.0) == 10, "its dispatches"
    assert budget.admits_loads(b"flood", 10, 0.2), "a later report counts"


def test_reports_of_service_have_a_budget_of_their_own() -> None:
    budget = small_budget(rows=(100, 200))
    assert sum(budget.admits_service(b"flood", 10, 0.0) for _ in range(50)) == 10
    assert budget.dropped_service == 40
    assert budget.admits_service(b"gateway", 10, 0.0)
    assert budget.admits_loads(b"flood", 10, 0.0), "its loads"
    assert budget.admits_service(b"flood", 10, 0.2), "a later report counts"

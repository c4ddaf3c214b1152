"""Events of budgets: once in a window, by one of all gateways."""

import msgspec
import pytest

from fairlead.tenants.model import Limit, LimitUnit, Tenant, Window
from fairlead.units import NANO_USD_PER_USD
from fairlead_gateway.limits.budget_watch import BudgetEvent, BudgetWatch
from fairlead_gateway.limits.exchange import LimitReply, Row

USD = NANO_USD_PER_USD
BUDGET = Limit(LimitUnit.COST, 500 * USD, Window.MONTH)
ACME = Tenant("acme", limits=(BUDGET, Limit(LimitUnit.TOKENS, 10, Window.DAY)))
START, END = 1_793_491_200_000, 1_796_083_200_000
NOW = END / 1000 - 1


def reply(spent: int, outstanding: int = 0, *, start: int = START, gateways: tuple[str, ...] = ("gw-1",)) -> LimitReply:
    """Returns what the store says when `spent` dollars are spent, and as many more are leased."""
    rows = [Row(f"{name}/1-ab", start, (spent + outstanding) * USD, 0, spent * USD) for name in gateways[:1]]
    rows += [Row(f"{name}/1-ab", start, 0, 0, 0) for name in gateways[1:]]
    used = (spent + outstanding) * USD
    return LimitReply(BUDGET.id, start, END, BUDGET.amount - used, used, False, [], rows, [])


def thresholds(events: list[BudgetEvent]) -> list[int]:
    return [event.threshold for event in events]


def test_each_threshold_is_an_event_once_in_a_window() -> None:
    watch = BudgetWatch("gw-1")
    crossed = [thresholds(watch.observe(ACME, [reply(spent)])) for spent in (0, 399, 400, 450, 499, 500, 700)]
    assert crossed == [[], [], [80], [], [], [100], []]
    assert thresholds(watch.observe(ACME, [reply(0, start=END)])) == []
    assert thresholds(watch.observe(ACME, [reply(600, start=END)])) == [100]


def test_what_gateways_hold_without_having_spent_it_does_not_count() -> None:
    watch = BudgetWatch("gw-1")
    assert watch.observe(ACME, [reply(300, outstanding=200)]) == []
    (state,) = watch.states(NOW)
    assert (state.used, state.used_share) == (300 * USD, 0.6)


def test_budget_is_used_up_when_too_little_is_left_for_a_request() -> None:
    watch = BudgetWatch("gw-1")
    contended = [reply(400), reply(497)]
    for limit_state in contended:
        limit_state.is_contended = True
    assert [thresholds(watch.observe(ACME, [limit_state])) for limit_state in contended] == [[80], [100]]
    assert thresholds(watch.observe(ACME, [reply(497)])) == []
    (state,) = watch.states(NOW)
    assert (state.is_used_up, state.used_share) == (True, 1.0)


def test_a_budget_of_a_window_that_has_ended_is_not_shown() -> None:
    watch = BudgetWatch("gw-1")
    watch.observe(ACME, [reply(500)])
    end = END / 1000
    assert [len(watch.states(wall)) for wall in (end - 0.001, end, end + 86_400)] == [1, 0, 0]
    watch.observe(ACME, [msgspec.structs.replace(reply(1, start=END), end=END + 2_678_400_000)])
    assert [state.used for state in watch.states(end)] == [USD]


def test_larger_budget_has_its_events_anew() -> None:
    watch = BudgetWatch("gw-1")
    watch.observe(ACME, [reply(500)])
    larger = Tenant("acme", limits=(Limit(LimitUnit.COST, 600 * USD, Window.MONTH),))
    assert thresholds(watch.observe(larger, [reply(510)])) == [80]
    assert not watch.states(NOW)[0].is_used_up


def test_one_of_all_gateways_logs() -> None:
    gateways = ("gw-2", "gw-1", "gw-3")
    by_gateway = {name: BudgetWatch(name).observe(ACME, [reply(450, gateways=gateways)]) for name in gateways}
    assert {name: thresholds(events) for name, events in by_gateway.items()} == {"gw-1": [80], "gw-2": [], "gw-3": []}


def test_replies_without_rows_and_other_limits_say_nothing() -> None:
    watch = BudgetWatch("gw-1")
    silent = reply(450)
    silent.rows = []
    tokens = LimitReply(ACME.limits[1].id, START, END, 0, 10, False, [], reply(450).rows, [])
    assert watch.observe(ACME, [silent, tokens]) == []
    assert watch.states(NOW) == []


def test_budget_that_is_gone_is_forgotten() -> None:
    watch = BudgetWatch("gw-1")
    watch.observe(ACME, [reply(450)])
    watch.retain([Tenant("acme")])
    assert watch.states(NOW) == []
    assert thresholds(watch.observe(ACME, [reply(450)])) == [80]


@pytest.mark.parametrize(("is_soft", "end"), [(False, "; requests are refused until then"), (True, "; requests go on")])
def test_event_says_what_happens(is_soft: bool, end: str) -> None:
    tenant = Tenant("acme", limits=(Limit(LimitUnit.COST, 500 * USD, Window.MONTH, is_soft=is_soft),))
    (event,) = BudgetWatch("gw-1").observe(tenant, [reply(501)])
    assert event.describe() == (
        f"100 % of the budget of the tenant acme are used: $501.00 of $500.00 until 2026-12-01T00:00:00.000Z{end}"
    )

"""Watches budgets: how much of each is used, and an event at 80 % and at 100 % of one.

All gateways see the same state of a budget. Each event is logged once in its window: by the gateway
with the smallest name among those that hold a part of it. If that one dies in this moment, nothing
is logged; metrics and the management API of every gateway show the state nevertheless.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fairlead.tenants.model import Limit, LimitUnit, Tenant
from fairlead.units import format_usd
from fairlead.usage.record import format_time
from fairlead_gateway.limits.exchange import LimitReply, Row

THRESHOLDS: Final = (80, 100)
"""In percent of a budget, ascending."""
_NEARLY_ALL: Final = 99
"""From this percentage on, a budget is used up once a request needs more than is left of it."""


@dataclass(frozen=True, slots=True)
class BudgetState:
    """The state of one budget in its present window.

    start, end: of the window, in Unix seconds.
    used: spent by all gateways, with what the last window overspent; in billionths of a dollar.
    amount: of the budget, in the same unit.
    is_soft: requests go on when it is used up.
    is_used_up: all is used, or requests were refused because too little is left.
    """

    tenant: str
    limit_id: str
    start: float
    end: float
    used: int
    amount: int
    is_soft: bool
    is_used_up: bool = False

    @property
    def used_share(self) -> float:
        share = self.used / self.amount if self.amount > 0 else 1.0
        return max(1.0, share) if self.is_used_up else share


@dataclass(frozen=True, slots=True)
class BudgetEvent:
    """A budget of which `threshold` percent are used."""

    threshold: int
    state: BudgetState

    def describe(self) -> str:
        """Returns the event as text for the log."""
        state = self.state
        text = f"{self.threshold} % of the budget of the tenant {state.tenant} are used: "
        text += f"${format_usd(state.used)} of ${format_usd(state.amount)} until {format_time(state.end)}"
        if self.threshold < THRESHOLDS[-1]:
            return text
        return text + ("; requests go on" if state.is_soft else "; requests are refused until then")


class BudgetWatch:
    """The states of all budgets that one gateway sees, and their events."""

    def __init__(self, gateway_id: str) -> None:
        self._gateway_id = gateway_id
        self._states: dict[tuple[str, str], BudgetState] = {}
        self._reached: dict[tuple[str, str], int] = {}

    def retain(self, tenants: Iterable[Tenant]) -> None:
        """Forgets budgets that are gone."""
        kept = {(tenant.name, limit.id) for tenant in tenants for limit in tenant.limits if _is_budget(limit)}
        self._states = {key: state for key, state in self._states.items() if key in kept}
        self._reached = {key: reached for key, reached in self._reached.items() if key in kept}

    def observe(self, tenant: Tenant, replies: Sequence[LimitReply]) -> list[BudgetEvent]:
        """Returns the events that this gateway is to log, after replies of the store.

        Replies without rows say nothing: what gateways hold without having spent it is not known.
        """
        budgets = {limit.id: limit for limit in tenant.limits if _is_budget(limit)}
        events = []
        for reply in replies:
            limit = budgets.get(reply.limit)
            if limit is None or not reply.rows:
                continue
            rows = [row for row in reply.rows if row.start == reply.start]
            used = reply.used - sum(row.outstanding for row in rows)
            state = BudgetState(
                tenant.name, limit.id, reply.start / 1000, reply.end / 1000, used, limit.amount, limit.is_soft
            )
            events += self._update(state, rows, is_contended=reply.is_contended)
        return events

    def states(self, wall: float) -> list[BudgetState]:
        """Returns the budgets whose window has not ended, the most used first.

        Why: a gateway that gets no more requests of a tenant hears nothing of the next window. An
        alert about the last one would never end.

        wall: the time in Unix seconds.
        """
        known = [state for state in self._states.values() if wall < state.end]
        return sorted(known, key=lambda state: (-state.used_share, state.tenant, state.limit_id))

    def _update(self, state: BudgetState, rows: Sequence[Row], *, is_contended: bool) -> list[BudgetEvent]:
        """Stores a state and returns its event, if there is one.

        is_contended: a request needed more than is left.
        """
        key = (state.tenant, state.limit_id)
        before = self._states.get(key)
        if before is None or (before.start, before.amount) != (state.start, state.amount):
            self._reached[key] = 0
        reached = max((level for level in THRESHOLDS if 100 * state.used >= level * state.amount), default=0)
        if is_contended and 100 * state.used >= _NEARLY_ALL * state.amount:
            reached = THRESHOLDS[-1]
        is_news = reached > self._reached[key]
        self._reached[key] = max(reached, self._reached[key])
        state = self._states[key] = replace(state, is_used_up=self._reached[key] == THRESHOLDS[-1])
        return [BudgetEvent(reached, state)] if is_news and self._speaks(rows) else []

    def _speaks(self, rows: Sequence[Row]) -> bool:
        return min((row.holder.rpartition("/")[0] for row in rows), default=self._gateway_id) == self._gateway_id


def _is_budget(limit: Limit) -> bool:
    return limit.unit is LimitUnit.COST and limit.window is not None

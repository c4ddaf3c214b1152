"""The read-only interface between the management port and the gateway.

Its data comes from the supervisor, and from the workers by a query for each request.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fairlead.audit.reader import AuditQuery
from fairlead.audit.record import AuditRecord
from fairlead.fleet.hung_engines import EjectionReport
from fairlead.fleet.model import Fleet
from fairlead.runtime.clock import Clock
from fairlead.runtime.loop_lag import LoopLag
from fairlead_gateway.messages import LoggedDecision
from fairlead_gateway.profiles.profile_estimator import LearnedProfile
from fairlead_gateway.supervisor.lost_instances import LostInstance
from fairlead_gateway.telemetry import LoadView, MetricsRecorder
from fairlead_gateway.telemetry.decision_log import LATEST
from fairlead_gateway.telemetry.status_types import IndexStatus
from fairlead_gateway.tenants.messages import TenantsSnapshot

if TYPE_CHECKING:  # only gateways with a ledger or with limits load their modules
    from fairlead.management_api import LimitOut
    from fairlead.usage.ledger_reader import LedgerContent
    from fairlead_gateway.limits.budget_watch import BudgetState


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """The state of all workers at one moment.

    warnings: texts about what is wrong or degraded.
    health_of: returns the health state of an instance and its reason.
    lag: the loop lag of the slowest worker.
    index: the state of the KV-cache index, by model.
    peers: other gateways and the seconds since their last message; None without Redis.
    learned_profile: returns the learned profile of an instance.
    queued: the number of queued requests, by model.
    ejections: the instances that have not answered since they were ejected.
    answer_times: when each instance answered last, in monotonic seconds.
    adapters: the LoRA adapters that workers know to be loaded, by instance.
    lost: instances that left the fleet without being drained, by model.
    """

    ready: bool
    warnings: list[str]
    loads: Mapping[str, LoadView]
    health_of: Callable[[str], tuple[str, str]] | None
    lag: LoopLag
    index: IndexStatus = field(default_factory=dict)
    peers: Sequence[tuple[str, float]] | None = None
    learned_profile: Callable[[str], LearnedProfile | None] | None = None
    queued: Mapping[str, int] = field(default_factory=dict)
    ejections: Mapping[str, EjectionReport] = field(default_factory=dict)
    answer_times: Mapping[str, float] = field(default_factory=dict)
    adapters: Mapping[str, frozenset[str]] = field(default_factory=dict)
    lost: Mapping[str, Sequence[LostInstance]] = field(default_factory=dict)


class TenantReports(Protocol):
    """The use of tenants, for reports."""

    async def usage_content(self, first_day: str, last_day: str) -> "LedgerContent | None":
        """Returns what the ledger holds about these days; None if there is no ledger."""

    def budgets(self) -> "Sequence[BudgetState]":
        """Returns the budgets of tenants, the most used first."""


class GatewayView(Protocol):
    """The state of one gateway. Workers that do not answer in time are named in the warnings."""

    @property
    def clock(self) -> Clock:
        """The clock by which ages are computed."""

    @property
    def started_at(self) -> float:
        """The start of the gateway, in monotonic seconds."""

    def fleet(self) -> Fleet:
        """Returns the fleet that requests are routed over, with the last signals of the engines."""

    async def status(self) -> GatewayStatus:
        """Returns the state of the workers."""

    async def counters(self, *, windows: bool) -> MetricsRecorder:
        """Returns the workers' summed counters; `windows` includes those of the last minute."""

    @property
    def tenant_reports(self) -> TenantReports:
        """The reports about tenants."""

    def tenants(self) -> TenantsSnapshot:
        """Returns the tenants, and when their keys were used last."""

    async def decisions(
        self, limit: int, model_key: str | None, tenants: frozenset[str] | None = None, kind: str = LATEST
    ) -> list[LoggedDecision]:
        """Returns `limit` requests: the newest ones, or the slowest of the last hour.

        tenants: only their requests; None: those of all.
        kind: of `DecisionLog.latest`.
        """

    async def decision(self, request_id: str, tenants: frozenset[str] | None = None) -> list[LoggedDecision]:
        """Returns the request with this id; else the newest of each tenant that chose this id.

        tenants: only their requests; None: those of all.
        """

    async def limit_states(self, tenants: frozenset[str] | None, limit: int) -> "list[LimitOut]":
        """Returns the limits of tenants and what is left of them, of at most `limit` tenants.

        tenants: None for all.
        """

    def audit_records(self, query: AuditQuery, limit: int) -> list[AuditRecord]:
        """Returns the newest audit records of this process, the newest first."""

    async def preview_route(
        self,
        path: str,
        body: bytes,
        session: str | None,
        tenant: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> list[LoggedDecision]:
        """Returns the decision of each worker that answers, for this request.

        tenant: whose request it is; None for a caller that belongs to no tenant.
        headers: of the request, with names in lower case.

        Raises the GatewayError with which a gateway would answer the request.
        """

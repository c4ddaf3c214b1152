"""The limits that something other than a test sets: name, value and reason.

Every other limit is a constant of the module that enforces it; its docstring begins with
``Limit:``. docs/reference/limits.md is generated from both. `Limits` combines the groups:

- `requests`: client HTTP, request content, queues, upstream connections, KV transfers.
- `gateways`: fleet, telemetry, worker processes, Redis and peers.
- `index`: KV events, the KV-cache index.
- `tenants`: slices of tenants' limits.
- `control_plane`: Kubernetes client, sleeping and hung engines, audit logs, autoscaler.
"""

from dataclasses import dataclass

from fairlead.limits.control_plane import AuditLimits, AutoscalerLimits, KubeLimits
from fairlead.limits.gateways import FleetLimits, LedgerLimits, PeerLimits, ProcessLimits, TelemetryLimits
from fairlead.limits.index import IndexLimits, KvEventLimits
from fairlead.limits.requests import (
    HandoffLimits,
    HttpLimits,
    IdempotencyLimits,
    QueueLimits,
    RequestLimits,
    UpstreamLimits,
)
from fairlead.limits.tenants import QuotaLimits

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits(
    HttpLimits,
    RequestLimits,
    IdempotencyLimits,
    QueueLimits,
    UpstreamLimits,
    HandoffLimits,
    FleetLimits,
    TelemetryLimits,
    ProcessLimits,
    LedgerLimits,
    PeerLimits,
    KvEventLimits,
    IndexLimits,
    QuotaLimits,
    KubeLimits,
    AuditLimits,
    AutoscalerLimits,
):
    """All limits: sizes in bytes, times in seconds, and plain counts. Tests pass a changed copy."""

"""All limits of Fairlead: name, value and reason. docs/reference/limits.md is generated from here.

A request or file beyond a limit gets an error. A full buffer drops entries or pauses its
source, and a wait that is too long ends. `Limits` combines the groups:

- `requests`: client HTTP, request content, queues, upstream connections, KV transfers.
- `gateways`: fleet, telemetry, worker processes, Redis and peers.
- `credentials`: bearer tokens and their issuers.
- `index`: KV events, the KV-cache index, the prefix map.
- `tenants`: slices of tenants' limits.
- `control_plane`: Kubernetes client, sleeping and hung engines, audit logs, autoscaler.
"""

from dataclasses import dataclass, fields

from fairlead.limits.control_plane import AuditLimits, AutoscalerLimits, HungEngineLimits, KubeLimits, SleepLimits
from fairlead.limits.credentials import BearerTokenLimits
from fairlead.limits.gateways import FleetLimits, LedgerLimits, PeerLimits, ProcessLimits, TelemetryLimits
from fairlead.limits.index import IndexLimits, KvEventLimits, PrefixMapLimits
from fairlead.limits.requests import HandoffLimits, HttpLimits, QueueLimits, RequestLimits, UpstreamLimits
from fairlead.limits.tenants import QuotaLimits

__all__ = ["Limits", "limits_table"]

GROUPS = (
    *(HttpLimits, RequestLimits, QueueLimits, UpstreamLimits, HandoffLimits),
    *(FleetLimits, TelemetryLimits, ProcessLimits, LedgerLimits, PeerLimits),
    *(BearerTokenLimits,),
    *(KvEventLimits, IndexLimits, PrefixMapLimits),
    QuotaLimits,
    *(KubeLimits, SleepLimits, AuditLimits, HungEngineLimits, AutoscalerLimits),
)


@dataclass(frozen=True)
class Limits(
    HttpLimits,
    RequestLimits,
    QueueLimits,
    UpstreamLimits,
    HandoffLimits,
    FleetLimits,
    TelemetryLimits,
    ProcessLimits,
    LedgerLimits,
    PeerLimits,
    BearerTokenLimits,
    KvEventLimits,
    IndexLimits,
    PrefixMapLimits,
    QuotaLimits,
    KubeLimits,
    SleepLimits,
    AuditLimits,
    HungEngineLimits,
    AutoscalerLimits,
):
    """All limits: sizes in bytes, times in seconds, and plain counts. Tests pass a changed copy."""


def limits_table() -> list[tuple[str, int | float, str]]:
    """Returns (name, value, reason) of every limit, in order of the groups."""
    defaults = Limits()
    return [
        (item.name, getattr(defaults, item.name), item.metadata["why"]) for group in GROUPS for item in fields(group)
    ]

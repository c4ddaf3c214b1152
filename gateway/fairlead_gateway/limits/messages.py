"""Messages between supervisor and workers about tenants' limits.

Counters only grow, and grants are absolute. So a dropped message costs nothing once the next one
has arrived. Times are monotonic seconds of the machine's clock.
"""

import msgspec

from fairlead_gateway.limits.exchange import GrantUpdate, Need, Row


class TenantQuotaReport(msgspec.Struct, array_like=True, frozen=True):
    """The counters and needs of one tenant, by limit; the supervisor adds the holder."""

    tenant: str
    rows: list[tuple[str, Row]]
    needs: list[tuple[str, Need]]


class QuotaReport(msgspec.Struct, tag=True):
    """Worker → supervisor: what tenants have used, and what their requests need."""

    tenants: list[TenantQuotaReport]


class QuotaUpdates(msgspec.Struct, tag=True):
    """Supervisor → worker: grants, each with its tenant."""

    updates: list[tuple[str, GrantUpdate]]

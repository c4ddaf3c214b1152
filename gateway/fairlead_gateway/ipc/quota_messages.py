"""Messages between supervisor and workers about tenants' limits.

Counters only grow, and grants are absolute. So a dropped message costs nothing once the next one
has arrived. Times are monotonic seconds of the machine's clock.
"""

import msgspec


class QuotaRow(msgspec.Struct, array_like=True, frozen=True):
    """A worker's counters for one limit in one window; see `quota.exchange.Row`."""

    limit: str
    start: int
    granted: int
    returned: int
    spent: int
    busy: int


class QuotaNeed(msgspec.Struct, array_like=True, frozen=True):
    """A worker's need of more of a limit; see `quota.exchange.Need`."""

    limit: str
    least: int
    wish: int


class TenantQuotaReport(msgspec.Struct, array_like=True, frozen=True):
    """The counters and needs of one tenant in a worker."""

    tenant: str
    rows: list[QuotaRow]
    needs: list[QuotaNeed]


class QuotaReport(msgspec.Struct, tag=True):
    """Worker → supervisor: what tenants have used, and what their requests need."""

    tenants: list[TenantQuotaReport]


class QuotaUpdate(msgspec.Struct, array_like=True, frozen=True):
    """A change of one limit for a worker.

    - granted: absolute; None if nothing is known but the status.
    - is_restart: the worker is another holder from now on, and drops the tenant's slices.
    """

    tenant: str
    limit: str
    start: int
    granted: int | None
    valid_until: float
    status: int
    available: int
    used: int
    ends_at: float
    is_contended: bool
    is_restart: bool


class QuotaUpdates(msgspec.Struct, tag=True):
    """Supervisor → worker: grants."""

    updates: list[QuotaUpdate]

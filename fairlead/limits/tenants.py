"""Limits of the accounting of tenants."""

from dataclasses import dataclass

from fairlead.limits.limit_field import limit


@dataclass(frozen=True)
class QuotaLimits:
    """Limits of the slices of tenants' limits that workers lease."""

    quota_lease_seconds: float = limit(
        5.0, "a slice of a tenant's limit may be used for this long without an answer of Redis"
    )
    quota_renew_seconds: float = limit(1.0, "interval of reports to Redis while slices are out")
    quota_report_seconds: float = limit(0.25, "interval of a worker's reports of what tenants have used")
    disconnected_tokens_per_second: int = limit(
        50, "output tokens a second to charge for an answer that is not streamed and does not come in time"
    )

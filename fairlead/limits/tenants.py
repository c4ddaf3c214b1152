"""Limits of the accounting of tenants."""

from dataclasses import dataclass

from fairlead.limits.limit_field import limit


@dataclass(frozen=True)
class QuotaLimits:
    """Limits of the slices of tenants' limits that workers lease."""

    quota_lease_seconds: float = limit(
        5.0, "a slice of a tenant's limit may be used for this long without an answer of Redis"
    )
    quota_fold_seconds: float = limit(60.0, "a worker without a lease for this long has no row of its own any more")
    quota_renew_seconds: float = limit(1.0, "interval of reports to Redis while slices are out")
    quota_report_seconds: float = limit(0.25, "interval of a worker's reports of what tenants have used")
    quota_wait_seconds: float = limit(
        2.0, "a request waits this long for a slice that others hold, or for Redis; then 429 or 503"
    )
    quota_retry_seconds: float = limit(0.05, "interval at which a slice that others hold is asked for again")
    quota_waiting: int = limit(1_024, "requests of one tenant in a worker that wait for a slice; the next gets 429")
    quota_output_tokens: int = limit(
        1_024, "output tokens to expect of a request without `max_tokens` before any answer was measured"
    )
    quota_prompt_margin: int = limit(
        256, "tokens that a chat template may add to a prompt, in strict mode; its bytes bound the rest"
    )
    disconnected_tokens_per_second: int = limit(
        50, "output tokens a second to charge for an answer that is not streamed and does not come in time"
    )
    quota_checkpoint_bytes: int = limit(
        16 * 1024 * 1024, "a checkpoint of granted amounts; one larger was not written by a gateway"
    )

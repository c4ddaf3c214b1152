"""Which signals to believe. Missing ones are None; lying ones are found out by conservation, and become None.

**Conservation.** What was in flight and did not finish must still be in flight. A replica that had 20 requests and counts none
finished cannot have none: a broken exporter, a proxy that answers zeros, a scrape of something else. The same holds between
gateways and engines: first tokens that no arrival explains say that the arrivals are wrong. It takes one sample to see, where a
window of minutes merely outlasts short lies.

A lie ends when engines move again, or after a quarter of an hour: nothing moving for so long may also be a load that was cut off.
Requests that clients gave up leave without finishing; gateways tell them, and of what was in flight half may go in one tick.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.signals.validation import PoolTotals
from fairlead_autoscaler.core.types import GatewayTraffic

_MAX_UNEXPLAINED = 3.0
"""Requests whose disappearance is no evidence."""


@dataclass(frozen=True, slots=True)
class ConsistencyState:
    """What was in flight at the last look, by pool and replica; since when engines lie; what was queued and held when arrivals
    stopped (None: nobody looked), how many requests engines began since then, and when they did last."""

    in_flight_of: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    lying_since: float | None = None
    queued: float | None = None
    began: float = 0.0
    began_at: float = 0.0


@dataclass(frozen=True, slots=True)
class TrustedSignals:
    """What of an observation is believed. ``lie`` says in words what was found out."""

    gateway: GatewayTraffic | None
    pools: Mapping[str, PoolTotals | None]
    inconsistency: str | None = None


def check_consistency(
    trust: ConsistencyState,
    now: float,
    traffic: GatewayTraffic | None,
    pools: Mapping[str, PoolTotals | None],
    settings: ScalingSettings,
) -> tuple[ConsistencyState, TrustedSignals]:
    """What to believe of ``seen`` and ``pools`` at ``now``, and what to remember of it."""
    known = [totals for totals in pools.values() if totals is not None]
    before, gone = _vanished_requests(trust.in_flight_of, pools)
    abandoned = traffic.abandoned if traffic is not None else 0.0
    lost = before > _MAX_UNEXPLAINED and gone - abandoned > max(_MAX_UNEXPLAINED, settings.lie_share * before)
    still = (
        trust.lying_since is not None
        and now - trust.lying_since < settings.lie_most_seconds
        and not _has_activity(known)
    )
    # What nobody could read now is as it was.
    in_flight = {
        name: trust.in_flight_of.get(name, {}) if totals is None else totals.in_flight_by_replica
        for name, totals in pools.items()
    }
    if lost or still:
        since = now if trust.lying_since is None else trust.lying_since
        arrivals = traffic if traffic is not None and (traffic.arrivals > 0.0 or traffic.held > 0.0) else None
        lie = f"{gone:.0f} requests in flight are gone without having finished" if lost else "engines still deny it"
        return replace(trust, in_flight_of=in_flight, lying_since=since), TrustedSignals(
            arrivals, dict.fromkeys(pools), lie
        )
    queued, began, began_at = _track_starts(trust, now, traffic, known, settings)
    remembered = ConsistencyState(in_flight, None, queued, began, began_at)
    if queued is not None and began > queued + _MAX_UNEXPLAINED:
        return remembered, TrustedSignals(None, pools, f"engines began {began:.0f} requests that no gateway received")
    return remembered, TrustedSignals(traffic, pools)


def _track_starts(
    before: ConsistencyState,
    now: float,
    traffic: GatewayTraffic | None,
    known: list[PoolTotals],
    settings: ScalingSettings,
) -> tuple[float | None, float, float]:
    """What was queued when arrivals stopped, what engines began since, and when last. What a gateway holds is queued as much as what
    an engine does: it is begun later, when nothing may arrive any more. After a time in which nobody looked there is nothing to
    compare with, so what is there then counts as queued."""
    entries = [totals for totals in known if totals.is_entry]
    here = sum(totals.waiting + totals.running for totals in entries)
    if traffic is None:
        return max(before.queued or 0.0, here) if known else None, 0.0, now
    if traffic.arrivals > 0.0 or traffic.held > 0.0 or now - before.began_at > settings.lie_most_seconds:
        return here + traffic.held, 0.0, now
    begins = sum(totals.first_tokens for totals in entries)
    if before.queued is None:
        return here + begins if known else None, 0.0, now
    return before.queued, before.began + begins, now if begins > 0.0 else before.began_at


def _vanished_requests(
    in_flight: Mapping[str, Mapping[str, float]], pools: Mapping[str, PoolTotals | None]
) -> tuple[float, float]:
    """Of replicas that are still there: what was in flight, and what of it neither finished nor is in flight."""
    before = gone = 0.0
    for name, totals in pools.items():
        if totals is None:
            continue
        was = in_flight.get(name, {})
        for replica, now in totals.in_flight_by_replica.items():
            had = was.get(replica)
            if had:
                before += had
                gone += max(0.0, had - now - totals.finished_by_replica.get(replica, 0.0))
    return before, gone


def _has_activity(known: list[PoolTotals]) -> bool:
    return any(totals.running + totals.waiting > 0.0 or totals.generated_tokens > 0.0 for totals in known)

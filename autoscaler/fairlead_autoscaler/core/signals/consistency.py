"""Consistency checks on metrics, by conservation of requests. Signals that fail become None
(missing).

1. A request that was in flight and has not finished is still in flight. A replica that had 20
   requests, reports none now and finished none is inconsistent: a broken exporter, a proxy that
   returns zeros, or another scrape target.
2. More first tokens at the engines than arrivals at the gateways mean that arrivals are incomplete.
3. Engines that run requests generate tokens. If none of them does while nothing arrives, counters
   stand still.

An inconsistency ends when the counters of the engines move again, or after 15 minutes: then the
traffic may really have ended. Requests of disconnected clients do not finish. Gateways report them,
and up to half of the requests in flight may end like this in one tick.

Why one sample is enough: a moving average needs minutes and still accepts short outages.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from fairlead_autoscaler.core.float_sum import float_sum
from fairlead_autoscaler.core.signals.validation import PoolTotals
from fairlead_autoscaler.core.types import GatewayTraffic

MAX_INCONSISTENT_SHARE: Final = 0.5
"""Share of a count that may be missing before signals contradict one another."""
MAX_INCONSISTENT_SECONDS: Final = 900.0
"""Signals that contradict one another for longer are believed."""

_MAX_UNEXPLAINED = 3.0
"""Requests whose disappearance is no evidence."""


@dataclass(frozen=True, slots=True)
class ConsistencyState:
    """The memory of the consistency checks.

    in_flight_of: requests in flight at the last tick, by pool and replica.
    inconsistent_since: when engines became inconsistent; kept until counters that stand still move.
    queued: requests that were queued when arrivals stopped; None: unknown.
    began: requests that engines began since then; began_at: when they last did.
    """

    in_flight_of: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    inconsistent_since: float | None = None
    queued: float | None = None
    began: float = 0.0
    began_at: float = 0.0


@dataclass(frozen=True, slots=True)
class TrustedSignals:
    """The signals that passed the checks.

    inconsistency: what the checks found, in words; None: nothing.
    """

    gateway: GatewayTraffic | None
    pools: Mapping[str, PoolTotals | None]
    inconsistency: str | None = None


def check_consistency(
    memory: ConsistencyState,
    now: float,
    traffic: GatewayTraffic | None,
    pools: Mapping[str, PoolTotals | None],
) -> tuple[ConsistencyState, TrustedSignals]:
    """Returns the next memory, and the signals that can be trusted.

    The engines' metrics are not trusted while requests vanish or no token is generated, for
    `MAX_INCONSISTENT_SECONDS` at most. The gateways' are not while engines begin more than they
    sent.
    """
    known = [totals for totals in pools.values() if totals is not None]
    before, vanished = _vanished_requests(memory.in_flight_of, pools)
    abandoned = traffic.abandoned if traffic is not None else 0.0
    is_recent = memory.inconsistent_since is None or now - memory.inconsistent_since < MAX_INCONSISTENT_SECONDS
    stalled = _stalled_requests(traffic, known)
    is_lost = before > _MAX_UNEXPLAINED and vanished - abandoned > max(
        _MAX_UNEXPLAINED, MAX_INCONSISTENT_SHARE * before
    )
    persists = (
        memory.inconsistent_since is not None
        and now - memory.inconsistent_since < MAX_INCONSISTENT_SECONDS
        and not _has_activity(known)
    )
    # Pools without metrics now keep their last known requests.
    in_flight = {
        name: memory.in_flight_of.get(name, {}) if totals is None else totals.in_flight_by_replica
        for name, totals in pools.items()
    }
    if is_lost or persists or (stalled and is_recent):
        since = now if memory.inconsistent_since is None else memory.inconsistent_since
        arrivals = traffic if traffic is not None and (traffic.arrivals > 0.0 or traffic.held > 0.0) else None
        found = "engines still report zeros"
        if is_lost:
            found = f"{vanished:.0f} requests in flight vanished without finishing"
        elif stalled:
            found = f"engines run {stalled:.0f} requests and generate no token"
        return replace(memory, in_flight_of=in_flight, inconsistent_since=since), TrustedSignals(
            arrivals, dict.fromkeys(pools), found
        )
    queued, began, began_at = _track_starts(memory, now, traffic, known)
    # Counters that still stand after MAX_INCONSISTENT_SECONDS must not be distrusted again.
    memory = ConsistencyState(in_flight, memory.inconsistent_since if stalled else None, queued, began, began_at)
    if queued is not None and began > queued + _MAX_UNEXPLAINED:
        return memory, TrustedSignals(None, pools, f"engines began {began:.0f} requests that no gateway received")
    return memory, TrustedSignals(traffic, pools)


def _track_starts(
    memory: ConsistencyState,
    now: float,
    traffic: GatewayTraffic | None,
    known: list[PoolTotals],
) -> tuple[float | None, float, float]:
    """Returns the requests queued when arrivals stopped, those begun since, and when one last
    began.

    A request that a gateway queues counts like one that an engine queues: it begins later, perhaps
    after arrivals have stopped. After a tick without metrics there is nothing to compare with, so
    all requests that are there count as queued.
    """
    entries = [totals for totals in known if totals.is_entry]
    present = float_sum([totals.waiting + totals.running for totals in entries])
    if traffic is None:
        return max(memory.queued or 0.0, present) if known else None, 0.0, now
    if traffic.arrivals > 0.0 or traffic.held > 0.0 or now - memory.began_at > MAX_INCONSISTENT_SECONDS:
        return present + traffic.held, 0.0, now
    begins = float_sum([totals.first_tokens for totals in entries])
    if memory.queued is None:
        return present + begins if known else None, 0.0, now
    return memory.queued, memory.began + begins, now if begins > 0.0 else memory.began_at


def _vanished_requests(
    in_flight: Mapping[str, Mapping[str, float]], pools: Mapping[str, PoolTotals | None]
) -> tuple[float, float]:
    """Returns the former requests in flight of replicas that still exist, and how many vanished.

    A vanished request is neither finished nor in flight.
    """
    total = vanished = 0.0
    for name, totals in pools.items():
        if totals is None:
            continue
        former = in_flight.get(name, {})
        for replica, current in totals.in_flight_by_replica.items():
            before = former.get(replica)
            if before:
                total += before
                vanished += max(0.0, before - current - totals.finished_by_replica.get(replica, 0.0))
    return total, vanished


def _stalled_requests(traffic: GatewayTraffic | None, known: list[PoolTotals]) -> float:
    """Returns the requests that run although no counter moves; 0 if one does, or few run."""
    running = float_sum([totals.running for totals in known])
    if running <= _MAX_UNEXPLAINED or (traffic is not None and traffic.arrivals > 0.0):
        return 0.0
    counted = float_sum([totals.generated_tokens + totals.first_tokens + totals.finished for totals in known])
    return 0.0 if counted > 0.0 else running


def _has_activity(known: list[PoolTotals]) -> bool:
    return any(totals.running + totals.waiting > 0.0 or totals.generated_tokens > 0.0 for totals in known)

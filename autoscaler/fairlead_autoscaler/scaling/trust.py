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

from fairlead_autoscaler.scaling.clean import Totals
from fairlead_autoscaler.scaling.settings import ScalingSettings
from fairlead_autoscaler.scaling.values import GatewaySeen

_FEW = 3.0
"""Requests whose disappearance is no evidence."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What was in flight at the last look, by replica; since when engines lie; what was queued when arrivals stopped, and how many
    requests engines began since then."""

    in_flight: Mapping[str, float] = field(default_factory=dict)
    lying_since: float | None = None
    queued: float = 0.0
    began: float = 0.0


@dataclass(frozen=True, slots=True)
class Believed:
    """What of an observation is believed. ``lie`` says in words what was found out."""

    gateway: GatewaySeen | None
    pools: Mapping[str, Totals | None]
    lie: str | None = None


def judge(
    trust: Trust, now: float, seen: GatewaySeen | None, pools: Mapping[str, Totals | None], settings: ScalingSettings
) -> tuple[Trust, Believed]:
    """What to believe of ``seen`` and ``pools`` at ``now``, and what to remember of it."""
    known = [totals for totals in pools.values() if totals is not None]
    before, gone = _gone(trust.in_flight, known)
    abandoned = seen.abandoned if seen is not None else 0.0
    lost = before > _FEW and gone - abandoned > max(_FEW, settings.lie_share * before)
    still = trust.lying_since is not None and now - trust.lying_since < settings.lie_most_seconds and not _move(known)
    # What nobody could read now is as it was.
    in_flight = dict(trust.in_flight) if len(known) < len(pools) else {}
    for totals in known:
        in_flight.update(totals.in_flight)
    if lost or still:
        since = now if trust.lying_since is None else trust.lying_since
        arrivals = seen if seen is not None and (seen.arrivals > 0.0 or seen.held > 0.0) else None
        lie = f"{gone:.0f} requests in flight are gone without having finished" if lost else "engines still deny it"
        return replace(trust, in_flight=in_flight, lying_since=since), Believed(arrivals, dict.fromkeys(pools), lie)
    queued, began = trust.queued, trust.began
    if seen is not None and seen.arrivals == 0.0 and seen.held == 0.0:
        began += sum(totals.first_tokens for totals in known if totals.entry)
    else:
        queued, began = sum(totals.waiting + totals.running for totals in known if totals.entry), 0.0
    remembered = Trust(in_flight, None, queued, began)
    if began > queued + _FEW:
        return remembered, Believed(None, pools, f"engines began {began:.0f} requests that no gateway received")
    return remembered, Believed(seen, pools)


def _gone(in_flight: Mapping[str, float], known: list[Totals]) -> tuple[float, float]:
    """Of replicas that are still there: what was in flight, and what of it neither finished nor is in flight."""
    before = gone = 0.0
    for totals in known:
        for replica, now in totals.in_flight.items():
            had = in_flight.get(replica)
            if had:
                before += had
                gone += max(0.0, had - now - totals.finished_of.get(replica, 0.0))
    return before, gone


def _move(known: list[Totals]) -> bool:
    return any(totals.running + totals.waiting > 0.0 or totals.generated_tokens > 0.0 for totals in known)

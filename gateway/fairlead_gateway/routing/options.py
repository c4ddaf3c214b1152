"""All that a published rule may look at, of every instance that may take a request."""

from collections.abc import Sequence

from fairlead_gateway.routing.holdings import Holdings, Place
from fairlead_gateway.routing.ledger import Ledger
from fairlead_gateway.routing.presets.question import Option
from fairlead_gateway.routing.recent import Recent
from fairlead_gateway.routing.request import RouteRequest


def options_of(
    request: RouteRequest,
    places: Sequence[Place],
    ledger: Ledger,
    holdings: Holdings,
    recent: Recent | None,
    *,
    prompt: float,
    rate: float,
    now: float,
) -> list[Option]:
    """One for each place, in their order. ``prompt`` is in tokens, ``rate`` tokens of a byte."""
    found, options = holdings.matched(request), []
    for place in places:
        load = ledger.seen(place.tally)
        hit = min(prompt, found.size(place.bit) * rate)
        options.append(
            Option(
                place.id,
                inflight=load.inflight,
                waiting=load.waiting,
                backlog_seconds=load.backlog_seconds,
                inflight_tokens=load.inflight_tokens,
                kv_tokens=place.kv_tokens,
                matched_tokens=hit,
                own_seconds=place.profile.prefill(prompt, hit),
                held_bytes=holdings.held_bytes(place),
                recent_seconds=0.0 if recent is None else recent.load(place.id, load.inflight, now),
                eviction_seconds=0.0
                if recent is None
                else recent.eviction(place.id, prompt - hit, place.kv_tokens, now),
            )
        )
    return options

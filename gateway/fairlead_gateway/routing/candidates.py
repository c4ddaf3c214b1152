"""All that a published rule may look at, of every instance that may take a request."""

from collections.abc import Sequence

from fairlead_gateway.routing.load.inflight import InflightTracker
from fairlead_gateway.routing.load.load_window import LoadWindow
from fairlead_gateway.routing.policies.policy_input import PolicyCandidate
from fairlead_gateway.routing.prefix.cache_view import CacheView, Endpoint
from fairlead_gateway.routing.request import RouteRequest


def policy_candidates(
    request: RouteRequest,
    endpoints: Sequence[Endpoint],
    inflight: InflightTracker,
    cache: CacheView,
    window: LoadWindow | None,
    *,
    prompt: float,
    tokens_per_byte: float,
    now: float,
) -> list[PolicyCandidate]:
    """One for each place, in their order. ``prompt`` is in tokens, ``rate`` tokens of a byte."""
    match, candidates = cache.match(request), []
    for endpoint in endpoints:
        load = inflight.total_load(endpoint.load)
        cached = min(prompt, match.bytes_at(endpoint.cache_bit) * tokens_per_byte)
        candidates.append(
            PolicyCandidate(
                endpoint.id,
                inflight=load.inflight,
                waiting=load.waiting,
                backlog_seconds=load.backlog_seconds,
                inflight_tokens=load.inflight_tokens,
                kv_tokens=endpoint.kv_tokens,
                matched_tokens=cached,
                prefill_seconds=endpoint.profile.prefill_time(prompt, cached),
                cached_bytes=cache.cached_bytes(endpoint),
                recent_seconds=0.0 if window is None else window.load_seconds(endpoint.id, load.inflight, now),
                eviction_seconds=0.0
                if window is None
                else window.eviction_seconds(endpoint.id, prompt - cached, endpoint.kv_tokens, now),
            )
        )
    return candidates

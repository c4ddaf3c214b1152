"""Candidates: endpoints as a decision compares them."""

from collections.abc import Sequence

from fairlead_gateway.routing.endpoint import Endpoint
from fairlead_gateway.routing.load.inflight import InflightTracker
from fairlead_gateway.routing.load.load_window import LoadWindow
from fairlead_gateway.routing.policies.policy_input import PolicyCandidate
from fairlead_gateway.routing.prefix.cache_view import CacheView
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
    """Returns one candidate per endpoint, in their order, for the published policies.

    prompt: in tokens.
    """
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


class Candidate:
    """One endpoint as it is now, for one request. Seconds are engine time.

    - indexed_tokens: cached tokens by the KV-cache index; negative if it says nothing.
    - cost_seconds: set by the policy.
    - served_session: it served the session last.

    Why: not frozen, since a frozen class takes six times as long to create.
    """

    __slots__ = (
        "backlog_seconds",
        "cost_seconds",
        "id",
        "indexed_tokens",
        "inflight",
        "inflight_tokens",
        "is_holder",
        "is_home",
        "kv_tokens",
        "matched_tokens",
        "prefill_seconds",
        "pull_source",
        "pull_tokens",
        "recompute_seconds",
        "served_session",
    )

    def __init__(
        self,
        id: str,
        backlog_seconds: float,
        prefill_seconds: float,
        matched_tokens: float,
        inflight: int,
        inflight_tokens: float,
        kv_tokens: int,
        is_home: bool = False,
        is_holder: bool = False,
        indexed_tokens: float = -1.0,
        served_session: bool = False,
    ) -> None:
        self.id = id
        self.backlog_seconds = backlog_seconds
        self.prefill_seconds = prefill_seconds
        self.matched_tokens = matched_tokens
        self.inflight = inflight
        self.inflight_tokens = inflight_tokens
        self.kv_tokens = kv_tokens
        self.is_home = is_home
        self.is_holder = is_holder
        self.indexed_tokens = indexed_tokens
        self.cost_seconds = 0.0
        self.served_session = served_session
        self.pull_source: str | None = None
        self.pull_tokens = self.recompute_seconds = 0.0

    def add_pull(self, source: str, tokens: float, seconds: float) -> None:
        """Adds a pull of so many tokens from `source`, with which the prompt is prefilled after
        `seconds`.
        """
        self.pull_source, self.pull_tokens = source, tokens
        self.recompute_seconds, self.prefill_seconds = self.prefill_seconds, seconds

    @property
    def ttft_seconds(self) -> float:
        """Predicted time to first token: the backlog, then the request's own prefill."""
        return self.backlog_seconds + self.prefill_seconds

"""Candidates: endpoints as a decision compares them."""

from collections.abc import Sequence

from fairlead_gateway.routing.endpoint import Endpoint
from fairlead_gateway.routing.load.inflight import EndpointLoad, InflightTracker
from fairlead_gateway.routing.load.load_window import LoadWindow
from fairlead_gateway.routing.prefix.cache_view import CacheView
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN
from fairlead_gateway.routing.request import RouteRequest


class Candidate:
    """One endpoint as it is now, for one request. Seconds are engine time.

    - load: the endpoint's load, other processes included.
    - matched_tokens: cached tokens of the prompt; `prefill_seconds` is for the others.
    - indexed_tokens: cached tokens by the KV-cache index; negative without index data.
    - served_session: the endpoint served the session last.

    `dual_hash` sets `cost_seconds`. `policy_candidates` sets `cached_bytes` (what the endpoint
    should have cached by dispatches, as prompt text), `recent_seconds` and `eviction_seconds` (of
    `load_window`).

    Why: not frozen, since a frozen class takes six times as long to create.
    """

    __slots__ = (
        "backlog_seconds",
        "cached_bytes",
        "cost_seconds",
        "eviction_seconds",
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
        "recent_seconds",
        "recompute_seconds",
        "served_session",
        "waiting",
    )

    def __init__(
        self,
        load: EndpointLoad,
        kv_tokens: int,
        prefill_seconds: float,
        matched_tokens: float,
        is_home: bool = False,
        is_holder: bool = False,
        indexed_tokens: float = -1.0,
        served_session: bool = False,
    ) -> None:
        self.id = load.instance
        self.backlog_seconds = load.backlog_seconds
        self.inflight = load.inflight
        self.inflight_tokens = load.inflight_tokens
        self.waiting = load.waiting
        self.kv_tokens = kv_tokens
        self.prefill_seconds = prefill_seconds
        self.matched_tokens = matched_tokens
        self.is_home = is_home
        self.is_holder = is_holder
        self.indexed_tokens = indexed_tokens
        self.served_session = served_session
        self.pull_source: str | None = None
        self.cost_seconds = self.pull_tokens = self.recompute_seconds = 0.0
        self.recent_seconds = self.eviction_seconds = 0.0
        self.cached_bytes = 0

    def add_pull(self, source: str, tokens: float, seconds: float) -> None:
        """Adds a pull of `tokens` tokens from the instance `source`. With it, the prompt is
        prefilled after `seconds`.
        """
        self.pull_source, self.pull_tokens = source, tokens
        self.recompute_seconds, self.prefill_seconds = self.prefill_seconds, seconds

    @property
    def ttft_seconds(self) -> float:
        """Predicted TTFT in seconds: the backlog, then the request's own prefill."""
        return self.backlog_seconds + self.prefill_seconds


def policy_candidates(
    request: RouteRequest,
    endpoints: Sequence[Endpoint],
    inflight: InflightTracker,
    cache: CacheView,
    window: LoadWindow | None,
    *,
    token_scale: float,
    now: float,
) -> list[Candidate]:
    """Returns one candidate per endpoint, in their order, for the published policies.

    token_scale: the calibrated tokens per estimated token.
    """
    prompt, tokens_per_byte = request.prompt_tokens * token_scale, token_scale / BYTES_PER_TOKEN
    match = cache.match(request)
    candidates: list[Candidate] = []
    for endpoint in endpoints:
        load = inflight.total_load(endpoint.load)
        cached = min(prompt, match.bytes_at(endpoint.cache_bit) * tokens_per_byte)
        prefill_seconds = endpoint.profile.prefill_time(prompt, cached)
        candidate = Candidate(load, endpoint.kv_tokens, prefill_seconds, cached)
        candidate.cached_bytes = cache.cached_bytes(endpoint)
        if window is not None:
            candidate.recent_seconds = window.load_seconds(endpoint.id, load.inflight, now)
            candidate.eviction_seconds = window.eviction_seconds(endpoint.id, prompt - cached, endpoint.kv_tokens, now)
        candidates.append(candidate)
    return candidates

"""Candidates: endpoints as a decision compares them.

`offer_pulls` decides whether a missing prefix is computed, or its KV pulled from a peer instance.

    computing   prefill(prompt, cached here)
    pulling     latency + (cached there - cached here) · bytes of a token ÷ bandwidth
                + prefill(prompt, cached there)

Both numbers are estimates, and a delayed pull costs its whole time. So a pull must save a fifth of
the computing.

Why: pulling pays only where the network is faster than the engine. At 100 Gb/s it gives 1.4 times
the throughput on long shared prefixes. At 25 Gb/s it loses for a small model on a fast accelerator.
So it is decided for every prompt.
"""

from collections.abc import Sequence
from typing import Final

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import KvPullSource
from fairlead_gateway.routing.load.inflight import Endpoint, EndpointLoad, InflightTracker
from fairlead_gateway.routing.load.load_window import LoadWindow
from fairlead_gateway.routing.prefix.cache_view import CacheView
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN
from fairlead_gateway.routing.request import RouteRequest

MAX_TIME_SHARE: Final = 0.8
"""A pull takes at most this share of the seconds that it replaces."""


class Candidate:
    """One endpoint as it is now, for one request. Seconds are engine time.

    - load: the endpoint's load, other processes included.
    - matched_tokens: cached tokens of the prompt; `prefill_seconds` is for the others.
    - loaded: cached tokens that are loaded from CPU memory, disk and shared store, in
      ``load_seconds``, while other prompts are computed; None: none.
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
        "load_seconds",
        "loaded",
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
        self.loaded: tuple[float, float, float] | None = None
        self.load_seconds = 0.0
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
        """Predicted TTFT in seconds: the backlog, then the request's own load and prefill."""
        return self.backlog_seconds + self.load_seconds + self.prefill_seconds


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


def pull_prefill_seconds(
    profile: EngineProfile,
    prompt: float,
    cached_here: float,
    cached_there: float,
    pull: KvPullSource,
    prefill_seconds: float,
) -> float:
    """Returns the seconds until the prompt is prefilled if the cached tokens of a peer are pulled.

    Returns -1 if computing, which takes `prefill_seconds`, is the better choice.
    """
    if cached_there <= cached_here:
        return -1.0
    seconds = pull.transfer_seconds(cached_there - cached_here) + profile.prefill_time(prompt, cached_there)
    return seconds if seconds <= MAX_TIME_SHARE * prefill_seconds else -1.0


def offer_pulls(candidates: list[Candidate], endpoints: list[Endpoint], holder: Endpoint, prompt: float) -> None:
    """Adds a pull from `holder` to each candidate for which pulling is cheaper than computing.

    - endpoints: the endpoints of the candidates, in the same order.
    - holder: the instance with the longest cached prefix.
    - prompt: in tokens.
    """
    if holder.pull is None:
        return
    cached_there = load_there = 0.0
    for candidate in candidates:
        if candidate.is_holder:
            cached_there, load_there = candidate.matched_tokens, candidate.load_seconds
    for candidate, endpoint in zip(candidates, endpoints, strict=True):
        if endpoint is holder or endpoint.pull is None:
            continue
        seconds = pull_prefill_seconds(
            endpoint.profile, prompt, candidate.matched_tokens, cached_there, holder.pull, candidate.prefill_seconds
        )
        if seconds >= 0.0:
            candidate.add_pull(holder.id, cached_there - candidate.matched_tokens, seconds + load_there)

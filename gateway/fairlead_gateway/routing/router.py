"""One model's router: what it has seen and sent, and a Decision for every request.

It owns the state that decisions are made from (ledger, mirror, hot prefixes, homes) and nothing else: no clock, no
I/O. The gateway, the fleet simulator and the seams drive this same class; the deciding itself is done by the pure
functions of the presets.
"""

from collections.abc import Mapping, Sequence

import xxhash

from fairlead.decision import Decision
from fairlead.errors import BadInput
from fairlead.fleet import Instance, InstanceState, Model
from fairlead.limits import Limits
from fairlead.profile import EngineProfile, presets
from fairlead_gateway.routing import dual_hash, simple
from fairlead_gateway.routing.hotness import HotPrefixes, levels
from fairlead_gateway.routing.ledger import InstanceLoad, Ledger, Tally
from fairlead_gateway.routing.prefix import BYTES_PER_TOKEN
from fairlead_gateway.routing.request import Candidate, RouteRequest
from fairlead_gateway.routing.ring import Homes
from fairlead_kvstore.mirror import PrefixMirror

PRESETS = ("dual-hash", "round-robin", "least-request", "session")
OUTPUT_GUESS_TOKENS = 256.0
SCALE_PACE = 0.05
SCALE_MOST = 4.0
SCALE_LEAST_TOKENS = 64
"""How fast, how far and from which prompts the estimate of tokens follows what engines report."""
SCAN_MOST = 16
"""Up to this many instances the least busy one is found by looking at all; beyond, among two drawn by the request's
id."""


class ModelRouter:
    """``secret`` keys the homes; ``seed`` shifts ties so that several models do not move in step."""

    def __init__(self, *, secret: bytes, seed: int = 0, limits: Limits | None = None) -> None:
        self._secret = secret
        self._limits = limits or Limits()
        self._turn = seed
        self._ledger = Ledger()
        self._mirror = PrefixMirror(self._limits.mirror_blocks_per_instance)
        self._hot = HotPrefixes()
        self._model: Model | None = None
        self._ready: dict[str, Instance] = {}
        self._homes = Homes({}, secret=secret)
        self._profile_default = presets()["h100-llama8b"]
        self._requests: dict[str, RouteRequest] = {}
        self._matched_last: tuple[RouteRequest | None, dict[str, float]] = (None, {})
        self._scale = 1.0  # reported prompt tokens ÷ the caller's estimate

    def update(self, model: Model, instances: Sequence[Instance], membership_epoch: int) -> None:
        """Replace what is routable. An instance that is neither ready nor draining has lost its cache."""
        if model.preset not in PRESETS:
            raise BadInput(
                f"no routing preset is called {model.preset!r}", field="routing.preset", hint=", ".join(PRESETS)
            )
        self._model = model
        kept = {item.id for item in instances if item.state in (InstanceState.READY, InstanceState.DRAINING)}
        for gone in set(self._ready) - kept:
            self._mirror.forget(gone)
        weights = {item.id: item.weight for item in instances if item.state is InstanceState.READY}
        if weights != {item.id: item.weight for item in self._ready.values()}:
            self._homes = Homes(weights, secret=self._secret)
        self._ready = {item.id: item for item in instances if item.state is InstanceState.READY}

    def decide(self, request: RouteRequest, now: float, *, excluded: frozenset[str] = frozenset()) -> Decision:
        """Choose an instance; ``excluded`` ones have just failed this request. ``chosen`` is None when none is left."""
        del now  # the ledger holds no ages: everything in it is this gateway's own and exact
        ids = [item for item in self._ready if item not in excluded]
        if not ids or self._model is None:
            return Decision(
                None, "none", "no instance is ready" if not self._ready else "every ready instance was tried"
            )
        self._matched_last = (None, {})
        key = self._key(request)
        preset = self._model.preset
        if preset == "round-robin":
            decision = simple.round_robin(ids, self._turn)
            self._turn += 1
            return decision
        if preset == "least-request":
            return simple.least_request({item: self._ledger.peek(item).inflight for item in ids}, request.id)
        if preset == "session":
            named = request.session is not None
            digest = xxhash.xxh3_64_intdigest((request.session or "").encode(), 7) if named else key
            return simple.session(self._homes.pair(digest, other_than=excluded), named)
        return self._dual_hash(request, key, ids, excluded)

    def dispatched(self, request: RouteRequest, instance_id: str, now: float) -> None:
        """The request was sent there: its prefill is backlog, and its blocks count as held there from now on."""
        del now
        instance = self._ready.get(instance_id)
        profile = self._profile(instance)
        prompt = self.prompt_tokens(request)
        matched = self._matched(request).get(instance_id, 0.0)
        self._matched_last = (None, {})
        tokens = prompt + min(request.max_tokens or OUTPUT_GUESS_TOKENS, OUTPUT_GUESS_TOKENS)
        self._ledger.dispatched(request.id, instance_id, seconds=profile.prefill(prompt, matched), tokens=tokens)
        self._requests[request.id] = request
        if instance is not None:
            self._mirror.add(
                instance_id, request.chain.hashes, request.chain.ends, capacity=self._bytes(profile.kv_tokens)
            )

    def first_token(self, request_id: str, now: float) -> None:
        """The engine answered: this prefill is no longer before anyone."""
        del now
        self._ledger.first_token(request_id)

    def finished(
        self,
        request_id: str,
        now: float,
        *,
        prompt_tokens: int | None = None,
        cached_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        """The answer is complete; what the engine reported may be None."""
        del now, cached_tokens
        instance_id = self._ledger.ended(request_id)
        request = self._requests.pop(request_id, None)
        if request is not None and prompt_tokens and request.prompt_tokens >= SCALE_LEAST_TOKENS:
            seen = min(SCALE_MOST, max(1 / SCALE_MOST, prompt_tokens / request.prompt_tokens))
            self._scale += SCALE_PACE * (seen - self._scale)
        if instance_id in self._ready and request is not None and output_tokens:
            # What was generated occupies the engine's cache too and pushes older blocks out.
            profile = self._profile(self._ready[instance_id])
            ghost = xxhash.xxh3_64_intdigest(request_id.encode(), request.chain.tail)
            self._mirror.add(
                instance_id, (ghost,), (self._bytes(output_tokens),), capacity=self._bytes(profile.kv_tokens)
            )

    def abandoned(self, request_id: str, now: float) -> None:
        """The request failed there or its client left: its load is gone at once."""
        del now
        self._ledger.ended(request_id)
        self._requests.pop(request_id, None)

    def uncached(self, request: RouteRequest) -> float:
        """Tokens of the prompt that even the instance that holds most of it would have to compute."""
        held = max((size for item, size in self._matched(request).items() if item in self._ready), default=0.0)
        return self.prompt_tokens(request) - held

    def loads(self) -> Mapping[str, InstanceLoad]:
        """This gateway's own load on every ready instance."""
        return {item: self._ledger.load(item) for item in self._ready}

    def homes(self, request: RouteRequest) -> tuple[str, ...]:
        """The two homes that the request's prefix hashes to at this moment."""
        return self._homes.pair(self._hot.key(levels(request.chain)))

    def _key(self, request: RouteRequest) -> int:
        """The routing key; the prompt is counted as seen once, however often the request is retried."""
        if request.id in self._requests:
            return self._hot.key(levels(request.chain))
        found = levels(request.chain)
        self._hot.observe(found, len(self._ready))
        return self._hot.key(found)

    def prompt_tokens(self, request: RouteRequest) -> float:
        """The prompt's length as this model's engines count it."""
        return request.prompt_tokens * self._scale

    def _bytes(self, tokens: int) -> int:
        """How much prompt text that many of the engine's tokens are."""
        return int(tokens * BYTES_PER_TOKEN / self._scale)

    def _matched(self, request: RouteRequest) -> dict[str, float]:
        """Tokens of the prompt that each instance holds, from bytes by the rate that this model's engines report."""
        chain = request.chain
        known, matched = self._matched_last
        if known is request:  # the dispatch of what has just been decided
            return matched
        found = self._mirror.matched(chain.hashes, chain.ends)
        prompt, rate = self.prompt_tokens(request), self._scale / BYTES_PER_TOKEN
        matched = {item: min(prompt, size * rate) for item, size in found.items()} if found else {}
        self._matched_last = (request, matched)
        return matched

    def _dual_hash(self, request: RouteRequest, key: int, ids: list[str], excluded: frozenset[str]) -> Decision:
        homes = self._homes.pair(key, other_than=excluded)
        matched = self._matched(request)
        loads = {item: self._ledger.peek(item) for item in ids}
        wanted = dict.fromkeys(homes)
        longest = max((size for item, size in matched.items() if item in loads), default=0.0)
        holder = None
        if longest > 0:
            holders = [item for item, size in matched.items() if size == longest and item in loads]
            holder = min(holders, key=lambda item: (loads[item].backlog_seconds, item))
            wanted[holder] = None
        wanted[self._least_busy(request, ids, loads)] = None
        mean = sum(load.backlog_seconds for load in loads.values()) / len(loads)
        assert self._model is not None
        limit = self._model.objectives.ttft_limit(self.prompt_tokens(request))
        candidates = [
            self._candidate(request, item, loads[item], matched.get(item, 0.0), item in homes, item == holder)
            for item in wanted
        ]
        return dual_hash.choose(candidates, mean_backlog_seconds=mean, objective_seconds=limit)

    def _least_busy(self, request: RouteRequest, ids: list[str], loads: Mapping[str, Tally]) -> str:
        drawn = ids
        if len(ids) > SCAN_MOST:
            digest = xxhash.xxh3_64_intdigest(request.id.encode())
            drawn = [ids[digest % len(ids)], ids[(digest >> 32) % len(ids)]]
        return min(drawn, key=lambda item: (loads[item].backlog_seconds, loads[item].inflight_tokens, item))

    def _candidate(
        self, request: RouteRequest, item: str, load: Tally, matched: float, home: bool, holder: bool
    ) -> Candidate:
        profile = self._profile(self._ready[item])
        return Candidate(
            id=item,
            backlog_seconds=load.backlog_seconds,
            own_seconds=profile.prefill(self.prompt_tokens(request), matched),
            matched_tokens=matched,
            inflight=load.inflight,
            inflight_tokens=load.inflight_tokens,
            kv_tokens=profile.kv_tokens,
            home=home,
            holder=holder,
        )

    def _profile(self, instance: Instance | None) -> EngineProfile:
        if instance is None or instance.profile is None:
            return self._profile_default
        return instance.profile

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
from fairlead_gateway.routing.ledger import InstanceLoad, Ledger
from fairlead_gateway.routing.prefix import BYTES_PER_TOKEN, PrefixChain
from fairlead_gateway.routing.request import Candidate, RouteRequest
from fairlead_gateway.routing.ring import Homes
from fairlead_gateway.routing.shared import Siblings
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

    def __init__(
        self, *, secret: bytes, seed: int = 0, limits: Limits | None = None, siblings: Siblings | None = None
    ) -> None:
        self._secret = secret
        self._limits = limits or Limits()
        self._turn = seed
        self._siblings = siblings
        self._ledger = Ledger(siblings.rows if siblings is not None else None)
        self._mirror = PrefixMirror(self._limits.mirror_blocks_per_instance)
        self._hot = HotPrefixes()
        self._model: Model | None = None
        self._ready: dict[str, Instance] = {}
        self._ids: list[str] = []
        self._profiles: dict[str, EngineProfile] = {}
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
        self._ids = list(self._ready)
        self._profiles = {item: instance.profile or self._profile_default for item, instance in self._ready.items()}

    def decide(self, request: RouteRequest, now: float, *, excluded: frozenset[str] = frozenset()) -> Decision:
        """Choose an instance; ``excluded`` ones have just failed this request. ``chosen`` is None when none is left."""
        del now  # the ledger holds no ages: everything in it is this gateway's own and exact
        ids = [item for item in self._ids if item not in excluded] if excluded else self._ids
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
        profile = self._profiles.get(instance_id, self._profile_default)
        prompt = request.prompt_tokens * self._scale
        matched = self._matched(request).get(instance_id, 0.0)
        self._matched_last = (None, {})
        most = request.max_tokens
        tokens = prompt + (OUTPUT_GUESS_TOKENS if not most or most > OUTPUT_GUESS_TOKENS else most)
        self._ledger.dispatched(request.id, instance_id, seconds=profile.prefill(prompt, matched), tokens=tokens)
        self._requests[request.id] = request
        if self._siblings is not None and self._model is not None:
            self._siblings.sent(self._model.key, request, instance_id)
        if instance_id in self._ready:
            chain = request.chain
            self._mirror.add(instance_id, chain.hashes, chain.ends, capacity=self._bytes(profile.kv_tokens))

    def heard(self, instance_id: str, chain: PrefixChain) -> None:
        """A sibling sent a prompt there: its blocks are held there, and it counts for how hot prefixes are."""
        if instance_id in self._ready:
            self._hot.observe(levels(chain), len(self._ready))
            profile = self._profiles.get(instance_id, self._profile_default)
            self._mirror.add(instance_id, chain.hashes, chain.ends, capacity=self._bytes(profile.kv_tokens))

    def show_again(self) -> None:
        """The slots of the shared rows have been given out anew."""
        self._ledger.show_again()

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
            profile = self._profiles[instance_id]
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
        """This process's own load on every instance that is ready, and on those that still have some of it."""
        return {item: self._ledger.load(item) for item in dict.fromkeys((*self._ready, *self._ledger.busy()))}

    def least_backlog(self) -> float:
        """Seconds of prefill before the least busy ready instance, what siblings sent included."""
        return min((self._ledger.peek(item).backlog_seconds for item in self._ready), default=0.0)

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
        least, total = self._ledger.least_busy(ids, self._drawn(request, ids))
        wanted = [*homes]
        holder = self._holder(matched, excluded) if matched else None
        if holder is not None and holder not in homes:
            wanted.append(holder)
        if least not in wanted:
            wanted.append(least)
        prompt = request.prompt_tokens * self._scale
        assert self._model is not None
        limit = self._model.objectives.ttft_limit(prompt)
        peek, profiles, held = self._ledger.peek, self._profiles, matched.get
        candidates = []
        for item in wanted:
            load, profile, hit = peek(item), profiles[item], held(item, 0.0)
            candidates.append(
                Candidate(
                    item,
                    load.backlog_seconds,
                    profile.prefill(prompt, hit),
                    hit,
                    load.inflight,
                    load.inflight_tokens,
                    profile.kv_tokens,
                    item in homes,
                    item == holder,
                )
            )
        return dual_hash.choose(candidates, mean_backlog_seconds=total / len(ids), objective_seconds=limit)

    def _holder(self, matched: Mapping[str, float], excluded: frozenset[str]) -> str | None:
        """The least busy of the usable instances that hold the longest prefix."""
        ready, peek = self._ready, self._ledger.peek
        usable = {item: size for item, size in matched.items() if item in ready and item not in excluded}
        longest = max(usable.values(), default=0.0)
        if longest <= 0:
            return None
        holders = [item for item, size in usable.items() if size == longest]
        return holders[0] if len(holders) == 1 else min(holders, key=lambda item: (peek(item).backlog_seconds, item))

    def _drawn(self, request: RouteRequest, ids: list[str]) -> list[str]:
        """Those among whom the least busy one is looked for."""
        if len(ids) <= SCAN_MOST:
            return ids
        digest = xxhash.xxh3_64_intdigest(request.id.encode())
        return [ids[digest % len(ids)], ids[(digest >> 32) % len(ids)]]

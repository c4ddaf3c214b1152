"""One model's router: what it has seen and sent, and a Decision for every request.

It owns the state that decisions are made from (ledger, mirror, hot prefixes, homes) and nothing else: no clock, no
I/O. The gateway, the fleet simulator and the seams drive this same class; the deciding itself is done by the pure
functions of the presets.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Final

import xxhash

from fairlead.decision import Decision
from fairlead.errors import BadInput
from fairlead.fleet import Instance, InstanceState, Model, Objectives, Pull
from fairlead.limits import Limits
from fairlead.profile import EngineProfile, presets
from fairlead_gateway.routing import dual_hash, published, simple
from fairlead_gateway.routing.hotness import HotPrefixes
from fairlead_gateway.routing.index import Told
from fairlead_gateway.routing.ledger import Flight, InstanceLoad, Ledger, Tally, backlog_of, least_busy
from fairlead_gateway.routing.pins import Pins
from fairlead_gateway.routing.prefix import BYTES_PER_TOKEN, PrefixChain, block_ends
from fairlead_gateway.routing.request import Candidate, RouteRequest
from fairlead_gateway.routing.ring import Homes
from fairlead_gateway.routing.shared import Siblings
from fairlead_gateway.routing.sources import pulled_seconds
from fairlead_kvstore.mirror import Matched, PrefixMirror

PRESETS = (
    "dual-hash",
    "round-robin",
    "least-request",
    "session",
    "power-of-two",
    "chwbl",
    "prefix-cache",
    "cache-aware",
    "llm-d",
    "lmetric",
    "min-ttft",
)
OUTPUT_GUESS_TOKENS: Final = 256.0
SCALE_PACE: Final = 0.05
SCALE_MOST: Final = 4.0
SCALE_LEAST_TOKENS: Final = 64
"""How fast, how far and from which prompts the estimate of tokens follows what engines report."""
SCAN_MOST: Final = 16
"""Up to this many instances the least busy one is found by looking at all; beyond, among two drawn by the request's
id."""
_BYTES_PER_TOKEN: Final = float(BYTES_PER_TOKEN)
_NOBODY: frozenset[str] = frozenset()
_INDEXED: Final = "\0"
_ENDLESS: Final = 1 << 60
"""What the index told of an instance is held in the mirror under its id and this, without a capacity: engines tell what they
evict."""


class _Place:
    """A ready instance with what a decision asks about it. ``bit`` finds what it should hold by all that is known, ``indexed`` (0:
    the index says nothing of it) what it holds by the index."""

    __slots__ = ("bit", "id", "indexed", "kv_tokens", "profile", "pull", "tally")

    def __init__(
        self, id: str, profile: EngineProfile, tally: Tally, bit: int, indexed: int, pull: Pull | None
    ) -> None:
        self.pull = pull
        self.id = id
        self.profile = profile
        self.kv_tokens = profile.kv_tokens
        self.tally = tally
        self.bit = bit | indexed
        self.indexed = indexed


class ModelRouter:
    """``secret`` keys the homes; ``seed`` shifts ties so that several models do not move in step."""

    def __init__(
        self,
        *,
        secret: bytes,
        seed: int = 0,
        limits: Limits | None = None,
        siblings: Siblings | None = None,
        told: Told | None = None,
    ) -> None:
        self._secret = secret
        self._limits = limits or Limits()
        self._turn = seed
        self._siblings = siblings
        self._hooks = told
        self._told: Told | None = None  # the hooks, while any instance tells what it holds
        self._ledger = Ledger(siblings.rows if siblings is not None else None)
        self._mirror = PrefixMirror(self._limits.mirror_blocks_per_instance)
        self._hot = HotPrefixes()
        self._pins = Pins(self._limits)
        # What is asked for every request is read out of the model once: it is of a module that is not compiled.
        self._model_key = ""
        self._preset = ""
        self._objectives = Objectives()
        self._ttft_limit: float | None = None
        self._ttft_grows = False
        self._ready: dict[str, _Place] = {}
        self._places: list[_Place] = []
        self._tallies: list[Tally] = []
        self._by_bit: dict[int, _Place] = {}
        self._bits = 0
        self._pulling = False
        self._pulled: tuple[RouteRequest, Candidate] | None = None  # what was last decided to be pulled
        self._weights: dict[str, float] = {}
        self._homes = Homes({}, secret=secret)
        self._profile_default = presets()["h100-llama8b"]
        self._asked: RouteRequest | None = None  # whose match is in ``_found``
        self._found = Matched()
        self._scale = 1.0  # reported prompt tokens ÷ the caller's estimate

    @property
    def followed(self) -> bool:
        """Whether any instance tells what it holds, and somebody is told what is sent."""
        return self._told is not None

    def update(self, model: Model, instances: Sequence[Instance], membership_epoch: int) -> None:
        """Replace what is routable. An instance that is neither ready nor draining has lost its cache."""
        if model.preset not in PRESETS:
            raise BadInput(
                f"no routing preset is called {model.preset!r}", field="routing.preset", hint=", ".join(PRESETS)
            )
        self._model_key, self._preset, self._objectives = model.key, model.preset, model.objectives
        self._ttft_limit = model.objectives.ttft_limit(0.0)
        self._ttft_grows = model.objectives.ttft_per_kilo_token_seconds != 0.0
        alive = (InstanceState.READY, InstanceState.DRAINING)
        living = [item.id for item in instances if item.state in alive]
        self._mirror.keep_only({*living, *[item + _INDEXED for item in living]})
        gone = self._ready.keys() - living
        if gone:
            self._pins.forget(gone)
        self._told = self._hooks if any(item.kv_events is not None for item in instances) else None
        ready = [item for item in instances if item.state is InstanceState.READY]
        weights = {item.id: item.weight for item in ready}
        if weights != self._weights:
            self._homes, self._weights = Homes(weights, secret=self._secret), weights
        self._ledger.keep(weights)
        self._ready = {
            item.id: _Place(
                item.id,
                item.profile or self._profile_default,
                self._ledger.tally(item.id),
                self._mirror.hold(item.id),
                self._mirror.bit(item.id + _INDEXED),
                item.pull if item.transfer is None else None,  # between prefill and decode KV goes another way
            )
            for item in ready
        }
        self._places = list(self._ready.values())
        self._tallies = [place.tally for place in self._places]
        self._pulling = sum([place.pull is not None for place in self._places]) > 1
        self._pulled = None
        self._find_by_bit()

    def decide(self, request: RouteRequest, now: float, *, excluded: frozenset[str] = _NOBODY) -> Decision:
        """Choose an instance; ``excluded`` ones have just failed this request. ``chosen`` is None when none is left."""
        places = [place for place in self._places if place.id not in excluded] if excluded else self._places
        if not places:
            return Decision(
                None, "none", "no instance is ready" if not self._ready else "every ready instance was tried"
            )
        self._asked = None
        retried = self._ledger.flies(request.id)  # a prompt is seen once, however often its request is retried
        chain, hot = request.chain, self._hot
        key = hot.key(chain) if retried else hot.observe(chain, len(self._ready))
        preset = self._preset
        if preset == "dual-hash":
            return self._dual_hash(request, self._homes.pair(key, other_than=excluded), places, now)
        if preset == "round-robin":
            decision = simple.round_robin([place.id for place in places], self._turn)
            self._turn += 1
            return decision
        if preset == "least-request":
            return simple.least_request(
                {place.id: self._ledger.seen(place.tally).inflight for place in places}, request.id
            )
        if preset != "session":
            return self._published(request, places, excluded)
        named = request.session is not None
        digest = xxhash.xxh3_64_intdigest((request.session or "").encode(), 7) if named else key
        return simple.session(self._homes.pair(digest, other_than=excluded), named)

    def dispatched(self, request: RouteRequest, instance_id: str, now: float) -> None:
        """The request was sent there: its prefill is backlog, and its blocks count as held there from now on."""
        if request.pin is not None:
            self._pins.put(request.pin, instance_id, now)
        place = self._ready.get(instance_id)
        profile = self._profile_default if place is None else place.profile
        bit = self._mirror.bit(instance_id) if place is None else place.bit
        prompt = request.prompt_tokens * self._scale
        found = self._matched(request)
        matched = min(prompt, found.size(bit) * (self._scale / _BYTES_PER_TOKEN))
        self._asked = None
        most = request.max_tokens
        tokens = prompt + (OUTPUT_GUESS_TOKENS if not most or most > OUTPUT_GUESS_TOKENS else most)
        told, indexed, believed = self._told, -1.0, 0.0
        if told is not None and place is not None and request.prompt_tokens > 0.0:
            size = request.prompt_tokens * _BYTES_PER_TOKEN
            believed = min(1.0, found.size(bit) / size)
            if place.indexed:
                indexed = min(1.0, found.size(place.indexed) / size)
            told.sent(self._model_key, request, instance_id)
        pulled, self._pulled = self._pulled, None
        seconds = profile.prefill(prompt, matched)
        if pulled is not None and pulled[0] is request and pulled[1].id == instance_id:
            seconds = pulled[1].own_seconds
            believed = max(believed, min(1.0, (pulled[1].matched_tokens + pulled[1].pull_tokens) / max(1.0, prompt)))
        self._ledger.dispatched(request, instance_id, seconds=seconds, tokens=tokens, indexed=indexed, matched=believed)
        if self._siblings is not None:
            self._siblings.sent(self._model_key, request, instance_id)
        if place is not None:
            self._hold(place, request.chain)

    def heard(self, instance_id: str, chain: PrefixChain, now: float, pin: Hashable = None) -> None:
        """A sibling or another gateway sent a prompt there: its blocks are held there, and it counts for how hot prefixes are.
        ``pin`` is of its session, None where it has none."""
        place = self._ready.get(instance_id)
        if place is not None:
            if pin is not None:
                self._pins.put(pin, instance_id, now)
            self._hot.observe(chain, len(self._ready))
            self._hold(place, chain)

    def hot(self, epoch: int, table: frozenset[Hashable]) -> None:
        """The hot prefixes as all gateways see them; epoch 0: nobody tells them any more."""
        self._hot.follow(epoch, table)

    def corrected(
        self, instance_id: str, forget: str, gone: Sequence[Hashable], held: Sequence[tuple[Hashable, ...]]
    ) -> None:
        """What the index says of an instance: first ``forget`` what it told before (``told``) or all that is believed (``all``); then
        the blocks that are ``gone``, and chains from the prompt's start that are ``held`` there."""
        place = self._ready.get(instance_id)
        if place is None:
            return
        mirror, indexed = self._mirror, instance_id + _INDEXED
        if forget:
            mirror.forget(indexed)
            if forget == "all":
                mirror.forget(instance_id)
        if gone and forget != "all":
            mirror.drop(indexed, gone)
            mirror.drop(instance_id, gone)
        for hashes in held:
            mirror.add(indexed, hashes, block_ends(len(hashes)), capacity=_ENDLESS)
        own, told = mirror.hold(instance_id), mirror.bit(indexed)
        if (own | told, told) != (place.bit, place.indexed):
            place.bit, place.indexed = own | told, told
            self._find_by_bit()

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
        del now
        flight = self._ledger.ended(request_id)
        if flight is None:
            return
        self._tell_end(flight, prompt_tokens, cached_tokens)
        sent = flight.request.prompt_tokens
        if prompt_tokens and sent >= SCALE_LEAST_TOKENS:
            seen = min(SCALE_MOST, max(1 / SCALE_MOST, prompt_tokens / sent))
            self._scale += SCALE_PACE * (seen - self._scale)
        place = self._ready.get(flight.tally.instance) if output_tokens else None
        if place is not None and output_tokens:
            # What was generated occupies the engine's cache too and pushes older blocks out.
            self._mirror.occupy(place.id, self._bytes(output_tokens), capacity=self._bytes(place.kv_tokens))

    def abandoned(self, request_id: str, now: float) -> None:
        """The request failed there or its client left: its load is gone at once."""
        del now
        flight = self._ledger.ended(request_id)
        if flight is not None:
            self._tell_end(flight, None, None)

    def uncached(self, request: RouteRequest) -> float:
        """Tokens of the prompt that even the instance that holds most of it would have to compute."""
        prompt, found = self.prompt_tokens(request), self._matched(request)
        for size, mask in zip(reversed(found.reached), reversed(found.masks), strict=True):
            if mask & self._bits:
                return prompt - min(prompt, size * (self._scale / _BYTES_PER_TOKEN))
        return prompt

    def loads(self) -> Mapping[str, InstanceLoad]:
        """This process's own load on every instance that is ready, and on those that still have some of it."""
        return {item: self._ledger.load(item) for item in dict.fromkeys((*self._ready, *self._ledger.busy()))}

    def least_backlog(self) -> float:
        """Seconds of prefill before the least busy ready instance, what siblings sent included."""
        return min((self._ledger.seen(place.tally).backlog_seconds for place in self._places), default=0.0)

    def homes(self, request: RouteRequest) -> tuple[str, ...]:
        """The two homes that the request's prefix hashes to at this moment."""
        return self._homes.pair(self._hot.key(request.chain))

    def prompt_tokens(self, request: RouteRequest) -> float:
        """The prompt's length as this model's engines count it."""
        return request.prompt_tokens * self._scale

    def _bytes(self, tokens: int) -> int:
        """How much prompt text that many of the engine's tokens are."""
        return int(tokens * _BYTES_PER_TOKEN / self._scale)

    def _tell_end(self, flight: Flight, prompt_tokens: int | None, cached_tokens: int | None) -> None:
        if self._told is not None:
            instance = flight.tally.instance
            self._told.ended(
                self._model_key, flight.request, instance, prompt_tokens, cached_tokens, flight.indexed, flight.matched
            )

    def _find_by_bit(self) -> None:
        """Both bits of an instance lead to it."""
        found: dict[int, _Place] = {}
        for place in self._places:
            found[place.bit ^ place.indexed] = place
            if place.indexed:
                found[place.indexed] = place
        self._by_bit = found
        self._bits = sum(found)

    def _hold(self, place: _Place, chain: PrefixChain) -> None:
        self._mirror.add(place.id, chain.hashes, chain.ends, capacity=self._bytes(place.kv_tokens))

    def _matched(self, request: RouteRequest) -> Matched:
        """What of the prompt each instance holds, in bytes."""
        if self._asked is not request:  # it is at the dispatch of what has just been decided
            self._found = self._mirror.matched(request.chain.hashes, request.chain.ends)
            self._asked = request
        return self._found

    def _dual_hash(self, request: RouteRequest, homes: tuple[str, ...], places: list[_Place], now: float) -> Decision:
        ready, ledger = self._ready, self._ledger
        prompt = request.prompt_tokens * self._scale
        rate = self._scale / _BYTES_PER_TOKEN
        found = self._matched(request)
        holder = self._holder(found, prompt, rate, places) if found.masks else None
        loads = ledger.seen_all(self._tallies if places is self._places else [place.tally for place in places])
        total = backlog_of(loads)
        least = ready[least_busy(loads if len(loads) <= SCAN_MOST else _drawn(request, loads)).instance]
        wanted = [ready[home] for home in homes]
        if holder is not None and holder not in wanted:
            wanted.append(holder)
        if least not in wanted:
            wanted.append(least)
        pinned = self._pinned(request, places, now) if request.pin is not None else None
        if pinned is not None:
            if pinned in wanted:
                wanted.remove(pinned)
            wanted.insert(0, pinned)  # a tie goes to the first
        candidates: list[Candidate] = []
        for place in wanted:
            load = ledger.seen(place.tally)
            hit = min(prompt, found.size(place.bit) * rate)
            candidates.append(
                Candidate(
                    place.id,
                    load.backlog_seconds,
                    place.profile.prefill(prompt, hit),
                    hit,
                    load.inflight,
                    load.inflight_tokens,
                    place.kv_tokens,
                    place.id in homes if pinned is not None else len(candidates) < len(homes),
                    place is holder,
                    min(prompt, found.size(place.indexed) * rate) if place.indexed else -1.0,
                    place is pinned,
                )
            )
        if self._pulling and holder is not None and places is self._places:  # a retry computes what it lacks
            self._offer_pulls(candidates, wanted, holder, prompt)
        limit = self._ttft_limit
        if self._ttft_grows:
            limit = self._objectives.ttft_limit(prompt)
        decision = dual_hash.choose(
            candidates,
            mean_backlog_seconds=total / len(places),
            objective_seconds=limit,
            hot_epoch=self._hot.epoch,
        )
        if decision.source is not None:
            for item in candidates:
                if item.id == decision.chosen:
                    self._pulled = (request, item)
        return decision

    def _published(self, request: RouteRequest, places: list[_Place], excluded: frozenset[str]) -> Decision:
        """By one of the rules of others, which look at every instance."""
        prompt, rate = request.prompt_tokens * self._scale, self._scale / _BYTES_PER_TOKEN
        found, seen = self._matched(request), self._ledger.seen
        all_: list[Candidate] = []
        for place in places:
            load, hit = seen(place.tally), min(prompt, found.size(place.bit) * rate)
            own = place.profile.prefill(prompt, hit)
            one = Candidate(
                place.id, load.backlog_seconds, own, hit, load.inflight, load.inflight_tokens, place.kv_tokens
            )
            one.waiting = load.waiting
            all_.append(one)
        preset, name = self._preset, request.id
        if preset == "power-of-two":
            return published.power_of_two(all_, name)
        if preset == "chwbl":
            chain = request.chain
            homes = self._homes.pair(
                chain.hashes[0] if chain.hashes else chain.tail, other_than=excluded | published.overloaded(all_)
            )
            return published.chwbl(all_, homes[0] if homes else None)
        if preset == "prefix-cache":
            return published.prefix_cache(all_, name)
        if preset == "cache-aware":
            return published.cache_aware(all_, name, prompt)
        if preset == "llm-d":
            return published.llm_d(all_, name, prompt)
        if preset == "lmetric":
            return published.lmetric(all_, name)
        return published.min_ttft(all_, name)

    def _offer_pulls(self, candidates: list[Candidate], wanted: list[_Place], holder: _Place, prompt: float) -> None:
        """Those that lack what the holder has may get it from there, where that is cheaper than to compute it."""
        if holder.pull is None:
            return
        there = 0.0
        for item in candidates:
            if item.holder:
                there = item.matched_tokens
        for item, place in zip(candidates, wanted, strict=True):
            if place is holder or place.pull is None:
                continue
            seconds = pulled_seconds(place.profile, prompt, item.matched_tokens, there, holder.pull, item.own_seconds)
            if seconds >= 0.0:
                item.pulls(holder.id, there - item.matched_tokens, seconds)

    def _pinned(self, request: RouteRequest, places: list[_Place], now: float) -> _Place | None:
        """Who served the session last, if it is among those that can be asked. An instance that is gone is in no table."""
        name = self._pins.get(request.pin, now)
        place = None if name is None else self._ready.get(name)
        return place if place is not None and (places is self._places or place in places) else None

    def _holder(self, found: Matched, prompt: float, rate: float, places: list[_Place]) -> _Place | None:
        """The least busy of those among ``places`` that hold the longest prefix."""
        usable = self._bits if places is self._places else sum([place.bit for place in places])
        longest = least = 0.0
        best: _Place | None = None
        index = len(found.masks)
        while index:
            index -= 1
            mask = found.masks[index] & usable
            if not mask:
                continue
            tokens = min(prompt, found.reached[index] * rate)
            if tokens <= 0 or (best is not None and tokens != longest):
                break
            longest = tokens
            while mask:
                bit = mask & -mask
                mask ^= bit
                place = self._by_bit[bit]
                seconds = self._ledger.seen(place.tally).backlog_seconds
                if best is None or seconds < least or (seconds == least and place.id < best.id):
                    best, least = place, seconds
        return best


def _drawn(request: RouteRequest, loads: list[Tally]) -> list[Tally]:
    """Those among whom the least busy one is looked for where they are many."""
    digest = xxhash.xxh3_64_intdigest(request.id.encode())
    return [loads[digest % len(loads)], loads[(digest >> 32) % len(loads)]]

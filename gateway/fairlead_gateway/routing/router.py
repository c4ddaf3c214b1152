"""One model's router: what it has seen and sent, and a Decision for every request.

It owns the state that decisions are made from (ledger, mirror, hot prefixes, homes) and nothing else: no clock, no
I/O. The gateway, the fleet simulator and the seams drive this same class; the deciding itself is done by the pure
functions of the presets.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

import xxhash

from fairlead.decision import Decision
from fairlead.errors import BadInput
from fairlead.fleet import Instance, InstanceState, Model, Objectives
from fairlead.limits import Limits
from fairlead.profile import presets
from fairlead_gateway.routing.convertible import Side, side_of
from fairlead_gateway.routing.gaps import Gaps
from fairlead_gateway.routing.glimpses import Glimpses
from fairlead_gateway.routing.held import HeldRequests
from fairlead_gateway.routing.holdings import Holdings, Knows, Place
from fairlead_gateway.routing.hotness import HotPrefixes
from fairlead_gateway.routing.index import Told
from fairlead_gateway.routing.kinds import Kinds, Ranked, by_kind, of_kind
from fairlead_gateway.routing.ledger import Flight, InstanceLoad, Ledger, Tally
from fairlead_gateway.routing.options import options_of
from fairlead_gateway.routing.pins import Pins
from fairlead_gateway.routing.prefix import BYTES_PER_TOKEN, PrefixChain
from fairlead_gateway.routing.presets import dual_hash
from fairlead_gateway.routing.presets.question import Question
from fairlead_gateway.routing.presets.stay import Stay
from fairlead_gateway.routing.presets.table import MOVING, ORDERS, PRESETS, RULES, WINDOWED, Rule
from fairlead_gateway.routing.recent import Recent
from fairlead_gateway.routing.reported import Reported
from fairlead_gateway.routing.request import Candidate, RouteRequest
from fairlead_gateway.routing.ring import Homes
from fairlead_gateway.routing.shared import Siblings
from fairlead_gateway.routing.sources import offer_pulls

OUTPUT_GUESS_TOKENS: Final = 256.0
_BYTES_PER_TOKEN: Final = float(BYTES_PER_TOKEN)
_NOBODY: frozenset[str] = frozenset()


class ModelRouter:
    """``secret`` keys the homes; ``seed`` shifts ties so that several models do not move in step. ``load`` and ``knows`` are
    for who sees instances better than the ledger and the mirror do: an instance's whole load, given our own part, and who holds
    how much."""

    def __init__(
        self,
        *,
        secret: bytes,
        seed: int = 0,
        limits: Limits | None = None,
        siblings: Siblings | None = None,
        told: Told | None = None,
        load: Callable[[Tally], Tally] | None = None,
        knows: Knows | None = None,
    ) -> None:
        self._secret = secret
        self._limits = limits or Limits()
        self._turn = seed
        self._siblings = siblings
        self._hooks = told
        self._told: Told | None = None  # the hooks, while any instance tells what it holds
        self._ledger = Ledger(siblings.rows if siblings is not None else None, load)
        self._glimpses = Glimpses(self._ledger)
        self._holdings = Holdings(self._limits.mirror_blocks_per_instance, knows)
        self._hot = HotPrefixes()
        self._pins = Pins(self._limits)
        # What is asked for every request is read out of the model once: it is of a module that is not compiled.
        self._model_key = ""
        self._preset = ""
        self._rule: Rule | None = None  # None: the default
        self._held: HeldRequests | None = None  # while the preset holds requests
        self._recent: Recent | None = None  # while the preset goes by it
        self._objectives = Objectives()
        self._ttft_limit: float | None = None
        self._ttft_grows = False
        self._ready: dict[str, Place] = {}
        self._places: list[Place] = []
        self._tallies: list[Tally] = []
        self._pulling = False
        self._pulled: tuple[RouteRequest, Candidate] | None = None  # what was last decided to be pulled
        self._weights: dict[str, float] = {}
        self._homes = Homes({}, secret=secret)
        self._kinds = Kinds(secret)
        self._ranked: Ranked | None = None  # of what was last decided, where there are kinds
        self._profile_default = presets()["h100-llama8b"]
        self._reported = Reported()
        self._gaps: Gaps | None = None  # where instances hand over KV
        self._profiled: frozenset[str] = frozenset()  # whose profile is known

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
        if model.preset != self._preset:
            self._rule = RULES.get(model.preset)
            order, moving = ORDERS.get(model.preset), model.preset in MOVING
            self._held = None if order is None else HeldRequests(self._ledger, self._holdings, order, moving=moving)
            self._recent = Recent() if model.preset in WINDOWED else None
        self._model_key, self._preset, self._objectives = model.key, model.preset, model.objectives
        self._ttft_limit = model.objectives.ttft_limit(0.0)
        self._ttft_grows = model.objectives.ttft_per_kilo_token_seconds != 0.0
        alive = (InstanceState.READY, InstanceState.DRAINING)
        living = [item.id for item in instances if item.state in alive]
        self._holdings.keep_only(living)
        gone = self._ready.keys() - living
        if gone:
            self._pins.forget(gone)
        if any(item.transfer is not None for item in instances):
            self._gaps = self._gaps or Gaps()
            self._gaps.keep(living)
        self._profiled = frozenset([item.id for item in instances if item.profile is not None])
        self._told = self._hooks if any(item.kv_events is not None for item in instances) else None
        ready = [item for item in instances if item.state is InstanceState.READY]
        weights = {item.id: item.weight for item in ready}
        if weights != self._weights:
            self._homes, self._weights = Homes(weights, secret=self._secret), weights
        self._ledger.keep(weights)
        self._glimpses.keep(weights)
        if self._recent is not None:
            self._recent.keep(weights)
        self._ready = {
            item.id: self._holdings.place(
                item.id,
                item.profile or self._profile_default,
                self._ledger.tally(item.id),
                item.pull if item.transfer is None else None,  # between prefill and decode KV goes another way
            )
            for item in ready
        }
        self._places = list(self._ready.values())
        self._tallies = [place.tally for place in self._places]
        self._pulling = sum([place.pull is not None for place in self._places]) > 1
        self._pulled = None
        self._holdings.ready(self._ready)
        self._kinds.update(ready, self._ready, model.objectives)

    def decide(self, request: RouteRequest, now: float, *, excluded: frozenset[str] = _NOBODY) -> Decision:
        """Choose an instance; ``excluded`` ones have just failed this request. ``chosen`` is None when none is left."""
        places = [place for place in self._places if place.id not in excluded] if excluded else self._places
        if not places:
            return Decision(
                None, "none", "no instance is ready" if not self._ready else "every ready instance was tried"
            )
        self._holdings.forget_asked()
        retried = self._ledger.flies(request.id)  # a prompt is seen once, however often its request is retried
        chain, hot = request.chain, self._hot
        key = hot.key(chain) if retried else hot.observe(chain, len(self._ready))
        decision = self._by(key, request, places, now, excluded)
        if self._ranked is not None:
            if not retried:
                self._kinds.charge(self._ranked)
            self._ranked = None
        return decision

    def would(self, request: RouteRequest, now: float, *, excluded: frozenset[str] = _NOBODY) -> Decision:
        """What ``decide`` would say; nothing is counted or remembered of the question."""
        places = [place for place in self._places if place.id not in excluded]
        if not places:
            return Decision(None, "none", "no instance is ready")
        turn, pulled = self._turn, self._pulled
        self._holdings.forget_asked()
        decision = self._by(self._hot.key(request.chain), request, places, now, excluded)
        self._holdings.forget_asked()
        self._turn, self._pulled, self._ranked = turn, pulled, None
        return decision

    def _by(
        self, key: Hashable, request: RouteRequest, places: list[Place], now: float, excluded: frozenset[str]
    ) -> Decision:
        """By the preset's rule, among ``places``; ``key`` is what homes are computed from."""
        chain, rule = request.chain, self._rule
        if rule is None:
            if self._kinds.several:
                return self._by_kind(key, request, places, now, excluded)
            return self._dual_hash(request, self._homes.pair(key, other_than=excluded), places, now, not excluded)
        named = self._preset == "session" and request.session is not None
        if named:
            key = xxhash.xxh3_64_intdigest((request.session or "").encode(), 7)
        question = self._question(request, self._homes.pair(key, other_than=excluded), places, now)
        question.named = named
        question.ring = lambda full: self._first(chain, excluded | full)
        self._turn += 1
        return rule(question)

    def _by_kind(
        self, key: Hashable, request: RouteRequest, places: list[Place], now: float, excluded: frozenset[str]
    ) -> Decision:
        """By the default preset inside the kind of accelerator that the request is for, and among all together where nobody meets
        the objective."""
        scale, glimpses = self._reported.scale, self._glimpses
        glimpses.begin(len(self._places))
        prompt, found = request.prompt_tokens * scale, self._holdings.matched(request)
        ranked = self._kinds.ranked(prompt, request.max_tokens, found, scale / _BYTES_PER_TOKEN, glimpses)
        self._ranked = ranked

        def among(homes: Homes, own: list[Place]) -> Decision:
            return self._dual_hash(request, homes.pair(key, other_than=excluded), own, now, not excluded)

        return by_kind(ranked, among, excluded) or of_kind(among(self._homes, places), ranked, -1)

    def dispatched(self, request: RouteRequest, instance_id: str, now: float, *, elsewhere: bool = False) -> None:
        """The request was sent there: its prefill is backlog, and its blocks count as held there from now on. ``elsewhere``: another
        engine has computed the prompt."""
        if request.pin is not None:
            self._pins.put(request.pin, instance_id, now)
        place, holdings = self._ready.get(instance_id), self._holdings
        profile = self._profile_default if place is None else place.profile
        prompt = request.prompt_tokens * self._reported.scale
        found = holdings.matched(request)
        bit = holdings.bit(instance_id) if place is None else place.bit
        matched = prompt if elsewhere else min(prompt, found.size(bit) * (self._reported.scale / _BYTES_PER_TOKEN))
        holdings.forget_asked()
        most = request.max_tokens
        tokens = prompt + (OUTPUT_GUESS_TOKENS if not most or most > OUTPUT_GUESS_TOKENS else most)
        told, indexed, believed = self._told, -1.0, 0.0
        if place is not None and request.prompt_tokens > 0.0:
            size = request.prompt_tokens * _BYTES_PER_TOKEN
            believed = min(1.0, found.size(bit) / size)
            if told is not None:
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
        if self._held is not None:
            stay = Stay(request.id, now, matched, seconds, self._objective_seconds(prompt))
            self._held.put(request, found.size(bit), stay)
        if self._gaps is not None and not elsewhere:
            self._gaps.computes(instance_id, seconds, now)
        if self._recent is not None:
            self._recent.sent(instance_id, seconds, prompt - matched, now)
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
        """What the index says of an instance: first ``forget`` what it told before (``told``) or all that is believed
        (``all``); then the blocks that are ``gone``, and chains from the prompt's start that are ``held`` there."""
        place = self._ready.get(instance_id)
        if place is None:
            return
        self._holdings.corrected(place, forget, gone, held)

    def show_again(self) -> None:
        """The slots of the shared rows have been given out anew."""
        self._ledger.show_again()

    def first_token(self, request_id: str, now: float) -> None:
        """The engine answered: this prefill is no longer before anyone."""
        self._ledger.first_token(request_id)
        if self._recent is not None:
            self._recent.first_token(request_id, now)
        if self._gaps is not None:
            self._gaps.first_token(request_id, now)
        if self._held is not None:
            self._held.forget(request_id)

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
        flight = self._ended(request_id, output_tokens, now)
        if flight is None:
            return
        self._tell_end(flight, prompt_tokens, cached_tokens)
        self._reported.prompt(flight.request.prompt_tokens, flight.matched, prompt_tokens, cached_tokens)
        place = self._ready.get(flight.tally.instance) if output_tokens else None
        if place is not None and output_tokens:
            self._holdings.occupy(place, self._bytes(output_tokens), self._bytes(place.kv_tokens))

    def abandoned(self, request_id: str, now: float) -> None:
        """The request failed there or its client left: its load is gone at once."""
        flight = self._ended(request_id, None, now)
        if flight is not None:
            self._tell_end(flight, None, None)

    @property
    def holds(self) -> bool:
        """Whether the preset wants requests to be held before engines, in ``order``. Who cannot hold them sends them at once."""
        return self._held is not None

    def order(self, request_id: str) -> tuple[float, float, str]:
        """Of requests held for one instance the smallest goes first; only of a preset that ``holds``."""
        assert self._held is not None
        return self._held.order(request_id)

    def rebalance(self, held: Mapping[str, Sequence[str]], now: float) -> list[tuple[str, str]]:
        """Which of the requests that are ``held`` (ids, by instance) had better go to another instance (request, instance).
        They count there from now on."""
        if self._held is None or not self._places:
            return []
        objective = self._objective_seconds(0.0)
        moves = self._held.moves(
            held, self._places, self.homes, self._reported.scale, objective_seconds=objective, now=now
        )
        for name, to in moves:
            flight = self._ledger.flight(name)
            request = self._held.take(name, self._ready.get(flight.tally.instance) if flight is not None else None)
            if request is not None:
                self.dispatched(request, to, now)
        return moves

    def side(self, request: RouteRequest, instance_id: str, now: float) -> Side | None:
        """A ready instance as the prompt would find it; None when it is not ready."""
        place = self._ready.get(instance_id)
        if place is None:
            return None
        prompt = self.prompt_tokens(request)
        hit = min(prompt, self._holdings.matched(request).size(place.bit) * (self._reported.scale / _BYTES_PER_TOKEN))
        self._holdings.forget_asked()
        load, profiled = self._ledger.seen(place.tally), instance_id in self._profiled
        return side_of(place, load, prompt, hit, profiled, self._gaps, now)

    def uncached(self, request: RouteRequest) -> float:
        """Tokens of the prompt that even the instance that holds most of it would have to compute."""
        prompt = self.prompt_tokens(request)
        return prompt - min(prompt, self._holdings.most(request) * (self._reported.scale / _BYTES_PER_TOKEN))

    def loads(self) -> Mapping[str, InstanceLoad]:
        """This process's own load on every instance that is ready, and on those that still have some of it."""
        return {item: self._ledger.load(item) for item in dict.fromkeys((*self._ready, *self._ledger.busy()))}

    def standing(self) -> list[tuple[Place, Tally]]:
        """The ready instances, and what siblings and we have there: what the gate before them sees."""
        return [(place, self._ledger.seen(place.tally)) for place in self._places]

    def place(self, instance_id: str) -> Place | None:
        """A ready instance."""
        return self._ready.get(instance_id)

    def least_backlog(self) -> float:
        """Seconds of prefill before the least busy ready instance, what siblings sent included."""
        return min((self._ledger.seen(place.tally).backlog_seconds for place in self._places), default=0.0)

    def homes(self, request: RouteRequest) -> tuple[str, ...]:
        """The two homes that the request's prefix hashes to at this moment."""
        return self._homes.pair(self._hot.key(request.chain))

    def prompt_tokens(self, request: RouteRequest) -> float:
        """The prompt's length as this model's engines count it."""
        return request.prompt_tokens * self._reported.scale

    def _bytes(self, tokens: int) -> int:
        """How much prompt text that many of the engine's tokens are."""
        return int(tokens * _BYTES_PER_TOKEN / self._reported.scale)

    def _ended(self, request_id: str, output_tokens: int | None, now: float) -> Flight | None:
        if self._held is not None:
            self._held.forget(request_id)
        flight = self._ledger.ended(request_id)
        if self._recent is not None and flight is not None:
            self._recent.ended(request_id, flight.tally.instance, output_tokens, now)
        if self._kinds.several and flight is not None and output_tokens:
            self._kinds.answered(self.prompt_tokens(flight.request), output_tokens)
        if self._gaps is not None:
            self._gaps.ended(request_id, "" if flight is None else flight.tally.instance, output_tokens, now)
        return flight

    def _tell_end(self, flight: Flight, prompt_tokens: int | None, cached_tokens: int | None) -> None:
        if self._told is not None:
            instance = flight.tally.instance
            self._told.ended(
                self._model_key, flight.request, instance, prompt_tokens, cached_tokens, flight.indexed, flight.matched
            )

    def _hold(self, place: Place, chain: PrefixChain) -> None:
        self._holdings.hold(place, chain, self._bytes(place.kv_tokens))

    def _dual_hash(
        self, request: RouteRequest, homes: tuple[str, ...], places: list[Place], now: float, fresh: bool
    ) -> Decision:
        ready, glimpses = self._ready, self._glimpses
        glimpses.begin(len(places))
        prompt = request.prompt_tokens * self._reported.scale
        rate = self._reported.scale / _BYTES_PER_TOKEN
        found = self._holdings.matched(request)
        whole = places is self._places
        holder = (
            self._holdings.holder(found, prompt, rate, None if whole else places, glimpses) if found.masks else None
        )
        mean, idlest = glimpses.fleet(self._tallies if whole else [place.tally for place in places])
        least = ready[idlest.instance]
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
            load = glimpses.look(place.tally)
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
        glimpses.end(self._tallies)
        if self._pulling and holder is not None and fresh:  # a retry computes what it lacks
            offer_pulls(candidates, wanted, holder, prompt)
        decision = dual_hash.choose(
            candidates,
            mean_backlog_seconds=mean,
            objective_seconds=self._objective_seconds(prompt),
            hot_epoch=self._hot.epoch,
            hot_lost=self._hot.lost,
            unforeseen_share=self._reported.unforeseen_share,
        )
        if decision.source is not None:
            for item in candidates:
                if item.id == decision.chosen:
                    self._pulled = (request, item)
        return decision

    def _question(self, request: RouteRequest, homes: tuple[str, ...], places: list[Place], now: float) -> Question:
        """All that a published rule may look at."""
        prompt = request.prompt_tokens * self._reported.scale
        rate = self._reported.scale / _BYTES_PER_TOKEN
        options = options_of(
            request, places, self._ledger, self._holdings, self._recent, prompt=prompt, rate=rate, now=now
        )
        return Question(
            request.id,
            options,
            homes=homes,
            prompt_tokens=prompt,
            objective_seconds=self._objective_seconds(prompt),
            turn=self._turn,
            now=now,
        )

    def _objective_seconds(self, prompt: float) -> float:
        """Of a prompt of so many tokens."""
        limit = self._objectives.ttft_limit(prompt) if self._ttft_grows else self._ttft_limit
        return dual_hash.OBJECTIVE_DEFAULT_SECONDS if limit is None else limit

    def _first(self, chain: PrefixChain, without: frozenset[str]) -> str | None:
        """Of the ring from the prompt's first block."""
        found = self._homes.pair(chain.hashes[0] if chain.hashes else chain.tail, other_than=without)
        return found[0] if found else None

    def _pinned(self, request: RouteRequest, places: list[Place], now: float) -> Place | None:
        """Who served the session last, if it is among those that can be asked. An instance that is gone is in no table."""
        name = self._pins.get(request.pin, now)
        place = None if name is None else self._ready.get(name)
        return place if place is not None and (places is self._places or place in places) else None

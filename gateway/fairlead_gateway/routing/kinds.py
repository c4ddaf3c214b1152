"""Which kind of accelerator a prompt is for, where a model's instances stand on several.

What a request takes of an instance differs more from kind to kind for some shapes than for others: a prompt of 8,000 tokens may
take 40 times as much of a small accelerator as of a large one, one of 100 tokens ten times. A fleet carries most where each shape
goes where it is comparatively cheap, and where all kinds are equally full. So each kind has a **price**, and a request goes to the
kind where price times work is least:

    work = prefill + output · step(n) / n        share of one instance that the request takes, in seconds
    n    = sequences that an instance runs within memory, batch and the inter-token objective, less three roots of that many:
           where memory holds few sequences they come in twos and threes, and whoever waits for memory holds up all behind it

Prices are the multipliers of a linear program (the most load within all kinds' capacity), found as it goes (dual ascent): the kind
that a request is charged to becomes dearer by its work per instance, all of them cheaper by their share of that, so that prices
stand still when every kind is charged alike. It is what was sent that counts, not what is measured, so nothing lags and nothing
swings; and only ratios count, so that each of several gateways finds the same prices from its part of the traffic. How long answers
are is learned by the length of prompts.

What is sent is an estimate of work, one that is too low where a single instance stands for a kind, or where long prompts hold up a
small memory. So work counts for more on a kind that is more than four tenths full by what is in flight, in the choice and in what is
charged. While a faster kind is calm (three tenths full) a request goes there: prices are for a fleet that has work to do.

The kind only comes first: inside it the preset decides as in any fleet (homes, holders, load), and where nobody of it would meet the
objective, the kind that is next in price is asked. Where a prefix is held its work is less, so that a conversation stays.

Kinds are pools whose instances differ by a quarter or more in what they take for some shape; a model with one kind knows nothing of
all this. Sources: Mélange (arXiv 2404.14527: shapes and kinds; it assigns by throughput and output length), the online form of the
assignment dual. Ours: prices from what is sent, no table and no message from the autoscaler.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from fairlead.decision import Decision, Input, Rejected
from fairlead.fleet import Instance, Objectives, Role
from fairlead.profile import EngineProfile
from fairlead.units import duration
from fairlead_gateway.routing.glimpses import Glimpses
from fairlead_gateway.routing.holdings import Place
from fairlead_gateway.routing.presets.dual_hash import OBJECTIVE_DEFAULT_SECONDS
from fairlead_gateway.routing.ring import Homes
from fairlead_kvstore.mirror import Matched

ALIKE: Final = 1.25
REFERENCES: Final = ((100.0, 100.0), (1_000.0, 250.0), (8_000.0, 250.0))
"""Pools are one kind if what their instances take for these prompts and answers differs by less than this."""
CROWD_SIGMAS: Final = 3.0
ITL_SHARE: Final = 0.8
"""Of the inter-token objective that a step may take: the rest is for steps that compute prompts."""
LEAST_BATCH: Final = 0.1
PACE: Final = 0.02
"""How fast prices follow: some hundred requests."""
STEP_MOST: Final = 5.0
"""Of the usual step: no single request moves prices by more."""
PRICE_MOST: Final = 8.0
"""Of its logarithm, from the middle of all: where a kind can serve almost nothing, no price makes it as full as the others."""
MEAN_PACE: Final = 0.01
CALM: Final = 0.3
CALM_BACKLOG: Final = 0.2
"""An instance with so much of the first-token objective before it counts as full."""
FULL: Final = 0.4
FULL_PRICE: Final = 3.0
FULL_MOST: Final = 4.0
"""From so full on work counts for more there: e to the threefold of what is beyond, which is taken for that much at most."""
OUTPUT_GUESS_TOKENS: Final = 256.0
_GUESS_WEIGHT: Final = 4.0
_REMEMBERED: Final = 200.0
_BANDS: Final = 24


class Kind:
    """Instances that are alike. ``price`` is a logarithm."""

    __slots__ = ("decodes", "homes", "name", "places", "prefills", "price", "profile")

    def __init__(
        self, name: str, profile: EngineProfile, places: list[Place], homes: Homes, prefills: bool, decodes: bool
    ) -> None:
        self.name = name
        self.profile = profile
        self.places = places
        self.homes = homes
        self.prefills = prefills
        self.decodes = decodes
        self.price = 0.0

    def batch(self, context: float, itl_seconds: float | None) -> float:
        """Sequences of ``context`` tokens that an instance runs within the objective."""
        profile = self.profile
        most = min(float(profile.max_sequences), profile.kv_tokens / context)
        root = (math.sqrt(CROWD_SIGMAS * CROWD_SIGMAS + 4.0 * most) - CROWD_SIGMAS) / 2.0
        batch = root * root
        if itl_seconds is not None:
            room = ITL_SHARE * itl_seconds - profile.step_seconds - profile.weights_seconds
            each = profile.sequence_seconds + profile.resident_token_seconds * context
            if each * batch > room:
                batch = room / each if each > 0.0 else 0.0
        return max(LEAST_BATCH, batch)

    def work(
        self, prompt: float, hit: float, output: float, ttft_seconds: float | None, itl_seconds: float | None
    ) -> float:
        """Seconds of one instance that a request takes; infinite where it cannot be served within the objectives even alone."""
        profile, seconds = self.profile, 0.0
        context = prompt + output
        if context > profile.kv_tokens:
            return math.inf
        if self.prefills:
            seconds = profile.prefill(prompt, hit)
            if ttft_seconds is not None and seconds > ttft_seconds:
                return math.inf
        if not self.decodes:
            return seconds
        fixed, each = profile.step_seconds, profile.sequence_seconds + profile.resident_token_seconds * context
        alone = fixed + max(profile.weights_seconds, profile.prefill_token_seconds) + each
        if itl_seconds is not None and output >= 2.0 and alone > itl_seconds:
            return math.inf
        batch = self.batch(context, itl_seconds)
        step = fixed + max(profile.weights_seconds, profile.prefill_token_seconds * batch) + each * batch
        return seconds + output * step / batch

    def hit(self, found: Matched, prompt: float, rate: float) -> float:
        """Tokens of a prompt that some instance of this kind holds."""
        if not found.masks:
            return 0.0
        bits = 0
        for place in self.places:
            bits |= place.bit
        index = len(found.masks)
        while index:
            index -= 1
            if found.masks[index] & bits:
                return min(prompt, found.reached[index] * rate)
        return 0.0

    def busy(self, glimpses: Glimpses, ttft_seconds: float, itl_seconds: float | None) -> float:
        """How full its instances are, by what is in flight: 1 is a full batch, or a backlog that is long for the objective."""
        inflight, tokens, backlog = 0, 0.0, 0.0
        for place in self.places:
            load = glimpses.rough(place.tally)
            inflight += load.inflight
            tokens += load.inflight_tokens
            backlog += load.backlog_seconds
        if not inflight:
            return 0.0
        count = len(self.places)
        busy = backlog / (count * CALM_BACKLOG * ttft_seconds)
        if self.decodes:
            busy += inflight / (count * self.batch(max(1.0, tokens / inflight), itl_seconds))
        return busy


class Ranked:
    """The kinds that can serve a request, the one to ask first at the front, with the work on each and price times work.
    ``charged`` is the place of the cheapest; where that is not the first, the first is faster and calm."""

    __slots__ = ("charged", "costs", "kinds", "objective_seconds", "works")

    def __init__(
        self, kinds: list[Kind], works: list[float], costs: list[float], charged: int, objective_seconds: float
    ) -> None:
        self.kinds = kinds
        self.works = works
        self.costs = costs
        self.charged = charged
        self.objective_seconds = objective_seconds


class Kinds:
    """Of one model. ``several``: there is a choice."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._kinds: list[Kind] = []
        self._homes: dict[str, tuple[dict[str, float], Homes]] = {}
        self._mean = 0.0
        self._outputs = [OUTPUT_GUESS_TOKENS * _GUESS_WEIGHT] * _BANDS
        self._answers = [_GUESS_WEIGHT] * _BANDS
        self._objectives = Objectives()
        self.several = False

    def update(self, ready: Sequence[Instance], places: Mapping[str, Place], objectives: Objectives) -> None:
        """These are ready. Kinds that stay keep their prices."""
        self._objectives, itl_seconds = objectives, objectives.itl_seconds
        roles = {item.role for item in ready}
        pools: dict[str, list[Instance]] = {}
        for item in ready:
            pools.setdefault(item.pool, []).append(item)
        self.several = False
        if len(pools) < 2 or len(roles) != 1:
            self._kinds = []
            return
        role = next(iter(roles))
        groups = _alike(pools, places, role, itl_seconds)
        self._homes = {name: homes for name, homes in self._homes.items() if name in groups}
        if len(groups) < 2:
            self._kinds = []
            return
        before = {kind.name: kind.price for kind in self._kinds}
        self._kinds = [
            _kind(name, group, places, role, self._homes_of(name, {item.id: item.weight for item in group}))
            for name, group in groups.items()
        ]
        self._priced(before, itl_seconds)
        self.several = True

    def _homes_of(self, name: str, weights: dict[str, float]) -> Homes:
        """The homes of a kind, made anew where its instances changed: a profile that was learned moves nobody."""
        before = self._homes.get(name)
        if before is None or before[0] != weights:
            before = self._homes[name] = (weights, Homes(weights, secret=self._secret))
        return before[1]

    def _priced(self, before: Mapping[str, float], itl_seconds: float | None) -> None:
        """Prices as they were; a new kind's such that a usual request costs there what it costs elsewhere."""
        usual = [min(1e6, kind.work(*_USUAL, None, itl_seconds)) for kind in self._kinds]
        known = [
            before[kind.name] + math.log(work)
            for kind, work in zip(self._kinds, usual, strict=True)
            if kind.name in before
        ]
        level = sum(known) / len(known) if known else sum(map(math.log, usual)) / len(usual)
        for kind, work in zip(self._kinds, usual, strict=True):
            kind.price = before[kind.name] if kind.name in before else level - math.log(work)

    def expected(self, prompt: float, most: float | None) -> float:
        """Tokens of the answer to a prompt of that length; ``most`` is what the client allows."""
        band = _band(prompt)
        mean = self._outputs[band] / self._answers[band]
        return mean if not most or most > mean else most

    def answered(self, prompt: float, output: float) -> None:
        """An answer of so many tokens came to a prompt of that length."""
        band = _band(prompt)
        kept = min(1.0, _REMEMBERED / self._answers[band])
        self._outputs[band] = self._outputs[band] * kept + output
        self._answers[band] = self._answers[band] * kept + 1.0

    def ranked(
        self,
        prompt: float,
        most: float | None,
        found: Matched,
        rate: float,
        glimpses: Glimpses,
    ) -> Ranked:
        """Which kinds to ask, in which order, for a prompt of so many tokens and at ``most`` so many of an answer. ``rate`` is
        tokens of a byte of what was ``found``."""
        output, itl_seconds = self.expected(prompt, most), self._objectives.itl_seconds
        limit = self._objectives.ttft_limit(prompt)
        ttft_seconds = OBJECTIVE_DEFAULT_SECONDS if limit is None else limit
        priced: list[tuple[float, int, float]] = []
        for index, kind in enumerate(self._kinds):
            work = kind.work(prompt, kind.hit(found, prompt, rate), output, ttft_seconds, itl_seconds)
            if work < math.inf:
                full = max(0.0, kind.busy(glimpses, ttft_seconds, itl_seconds) - FULL)
                priced.append((work * math.exp(kind.price + FULL_PRICE * min(full, FULL_MOST)), index, work))
        priced.sort()
        kinds = [self._kinds[index] for _, index, _ in priced]
        works, costs = [work for _, _, work in priced], [cost for cost, _, _ in priced]
        first = 0
        for index in range(1, len(kinds)):
            faster = works[index] < works[first]
            if faster and kinds[index].busy(glimpses, ttft_seconds, itl_seconds) < CALM:
                first = index
        if first:
            for values in (works, costs):
                values.insert(0, values.pop(first))
            kinds.insert(0, kinds.pop(first))
        return Ranked(kinds, works, costs, 1 if first else 0, ttft_seconds)

    def charge(self, ranked: Ranked) -> None:
        """A request goes where its price says: the kind becomes dearer by what it takes, all of them cheaper by their share."""
        if not ranked.kinds:
            return
        kind = ranked.kinds[ranked.charged]
        load = ranked.costs[ranked.charged] / math.exp(kind.price) / len(kind.places)
        self._mean = load if not self._mean else self._mean + MEAN_PACE * (load - self._mean)
        step = PACE * min(STEP_MOST, load / self._mean)
        kind.price += step
        middle = sum([each.price for each in self._kinds]) / len(self._kinds)
        for each in self._kinds:
            each.price = max(-PRICE_MOST, min(PRICE_MOST, each.price - middle))


_USUAL: Final = (1_000.0, 0.0, 250.0)


def _band(prompt: float) -> int:
    return min(_BANDS - 1, max(0, int(math.log2(max(1.0, prompt)))))


def _alike(
    pools: Mapping[str, list[Instance]], places: Mapping[str, Place], role: Role, itl_seconds: float | None
) -> dict[str, list[Instance]]:
    """Pools put together where they are alike, by the name of the first of them."""
    groups: dict[str, list[Instance]] = {}
    taken: dict[str, list[float]] = {}
    for name, items in sorted(pools.items()):
        kind = _kind(name, items, places, role, Homes({}, secret=b""))
        works = [kind.work(prompt, 0.0, output, None, itl_seconds) for prompt, output in REFERENCES]
        same = [
            other
            for other, theirs in taken.items()
            if all(_near(mine, their) for mine, their in zip(works, theirs, strict=True))
        ]
        if same:
            groups[same[0]] = sorted([*groups[same[0]], *items], key=_by_id)
        else:
            groups[name], taken[name] = list(items), works
    return groups


def _near(one: float, other: float) -> bool:
    if one == math.inf or other == math.inf:
        return one == other
    return max(one, other) <= ALIKE * min(one, other)


def _kind(name: str, items: Sequence[Instance], places: Mapping[str, Place], role: Role, homes: Homes) -> Kind:
    """Its profile is that of the instance in the middle by prefill: one slow engine does not make another accelerator."""
    own = [places[item.id] for item in items]
    middle = sorted(own, key=_by_prefill)[len(own) // 2]
    return Kind(name, middle.profile, own, homes, role is not Role.DECODE, role is not Role.PREFILL)


def _by_prefill(place: Place) -> tuple[float, str]:
    return place.profile.prefill(1_000.0), place.id


def _by_id(item: Instance) -> str:
    return item.id


class OfKind:
    """The account of a decision inside a kind: what decided there, and why that kind."""

    __slots__ = ("_asked", "_inside", "_ranked")

    def __init__(self, inside: Decision, ranked: Ranked, asked: int) -> None:
        self._inside = inside
        self._ranked = ranked
        self._asked = asked

    def reason(self) -> str:
        """One sentence."""
        ranked, asked = self._ranked, self._asked
        if asked < 0:
            return f"{self._inside.reason}; no kind of accelerator has an instance that meets the objective"
        name = ranked.kinds[asked].name
        if asked:
            why = f"nobody of {ranked.kinds[0].name} meets the objective"
        elif ranked.charged:
            why = "faster, and calm"
        elif len(ranked.kinds) == 1:
            why = "no other kind can serve it within the objectives"
        else:
            why = f"at their prices {ranked.costs[1] / ranked.costs[0]:.1f} x as dear on {ranked.kinds[1].name}"
        return f"{self._inside.reason}; on {name} ({duration(ranked.works[asked])} of an instance): {why}"

    def rejected(self) -> tuple[Rejected, ...]:
        """The others of the same kind."""
        return self._inside.rejected

    def inputs(self) -> Mapping[str, Input]:
        """Those of the decision, and work and price of each kind."""
        table = dict(self._inside.inputs)
        ranked = self._ranked
        for kind, work, cost in zip(ranked.kinds, ranked.works, ranked.costs, strict=True):
            table[f"{kind.name}/work_seconds"] = Input(work)
            table[f"{kind.name}/price"] = Input(cost / work)
        return table


def of_kind(inside: Decision, ranked: Ranked, asked: int) -> Decision:
    """``inside`` with the reason for its kind; ``asked`` is the kind's place in the order, -1: all were asked together."""
    return Decision(
        inside.chosen,
        inside.rule,
        cost_seconds=inside.cost_seconds,
        home=inside.home,
        matched_tokens=inside.matched_tokens,
        ttft_seconds=inside.ttft_seconds,
        account=OfKind(inside, ranked, asked),
        source=inside.source,
    )


def by_kind(
    ranked: Ranked, among: Callable[[Homes, list[Place]], Decision], excluded: frozenset[str]
) -> Decision | None:
    """The decision of the first kind in which somebody meets the objective; None where nobody does. ``among`` decides among
    instances with these homes."""
    for asked, kind in enumerate(ranked.kinds):
        places = [place for place in kind.places if place.id not in excluded] if excluded else kind.places
        if not places:
            continue
        inside = among(kind.homes, places)
        if inside.ttft_seconds is not None and inside.ttft_seconds <= ranked.objective_seconds:
            return of_kind(inside, ranked, asked)
    return None

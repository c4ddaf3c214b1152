"""Accelerator selection: the kind of accelerator for each prompt of a model with several.

The cost of a request differs between kinds by its shape. On a small accelerator, a prompt of 8,000
tokens may cost 40 times as much as on a large one. One of 100 tokens costs ten times as much. A
fleet carries most if each shape goes where it is comparatively cheap and all kinds are equally
full. So each kind has a **price**, and a request goes to the kind with the least price times work:

    work = prefill + output · step(n) / n        share of one instance that the request takes, in s
    n    = sequences that an instance runs within memory, batch and TPOT target,
           less three roots of that: small memories fill in jumps, and a waiting sequence blocks all

Prices are the multipliers of a linear program (the most load within all capacities), found by
online dual ascent. The kind that a request is charged to becomes dearer by its work per instance,
and all of them cheaper by their share. Prices are stable when every kind is charged alike. Only
dispatches count, not measurements, so nothing lags or oscillates. Only ratios count, so each
gateway finds the same prices from its part of the traffic. Output lengths are learned by prompt
length.

Dispatched work is an estimate. It is too low if a single instance is a kind, or if long prompts
block a small memory. So work counts more on a kind that is over four tenths full by what is in
flight, in the choice and in the charge. While a faster kind is lightly loaded (three tenths),
requests go there: prices are for a busy fleet.

The kind is chosen first. Inside it, the default preset decides as in any fleet. If no endpoint of
that kind meets the SLO, the kind with the next price is tried. A cached prefix lowers the work, so
a conversation stays.

Pools are of different kinds if their instances differ by a quarter or more in the work of some
shape. A model with one kind, with several roles or with another preset skips all of this.

Source: Mélange (arXiv 2404.14527: shapes and kinds; it assigns by throughput and output length),
and the online assignment dual. Prices from dispatches, without a table or a message from the
autoscaler, are ours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from fairlead.decision import Decision, DecisionInput, RejectedCandidate
from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Instance, Role, SloTargets
from fairlead.units import format_duration
from fairlead_gateway.routing.hash_ring import HomeRings
from fairlead_gateway.routing.load.inflight import Endpoint, SampledLoads
from fairlead_gateway.routing.prefix.cache_view import PrefixMatch
from fairlead_gateway.routing.request import DEFAULT_OUTPUT_TOKENS, DEFAULT_TTFT_SECONDS

SAME_KIND_RATIO: Final = 1.25
REFERENCE_SHAPES: Final = ((100.0, 100.0), (1_000.0, 250.0), (8_000.0, 250.0))
"""Pools are one kind if their work for these prompts and outputs differs by less than
this ratio.
"""
CROWD_SIGMAS: Final = 3.0
ITL_SHARE: Final = 0.8
"""Share of the inter-token objective for a step; the rest is for steps that compute prompts."""
MIN_BATCH: Final = 0.1
PRICE_STEP: Final = 0.02
"""Speed at which prices follow: some hundred requests."""
MAX_STEP_RATIO: Final = 5.0
"""Bound on a single step, in usual steps."""
MAX_LOG_PRICE: Final = 8.0
"""Bound on the logarithm of a price, from the mean: no price can fill a kind that serves almost
nothing.
"""
MEAN_SMOOTHING: Final = 0.01
LIGHT_LOAD: Final = 0.3
FULL_BACKLOG_SHARE: Final = 0.2
"""An instance with this share of the TTFT objective as backlog counts as full."""
HEAVY_LOAD: Final = 0.4
HEAVY_LOAD_PRICE: Final = 3.0
MAX_HEAVY_LOAD: Final = 4.0
"""Above `HEAVY_LOAD`, work counts e to the `HEAVY_LOAD_PRICE`-fold of the excess, which
is bounded.
"""
_PRIOR_ANSWERS: Final = 4.0
_MAX_OUTPUT: Final = 131_072.0  # tokens; one engine that reports more does not decide for all
_MAX_ANSWERS: Final = 200.0
_PROMPT_BANDS: Final = 24

_USUAL_SHAPE: Final = (1_000.0, 0.0, 250.0)


class AcceleratorKind:
    """The instances of one kind of accelerator. `log_price` is the logarithm of the kind's
    price.
    """

    __slots__ = ("decodes", "endpoints", "homes", "log_price", "name", "prefills", "profile")

    def __init__(
        self,
        name: str,
        profile: EngineProfile,
        endpoints: list[Endpoint],
        homes: HomeRings,
        prefills: bool,
        decodes: bool,
    ) -> None:
        self.name = name
        self.profile = profile
        self.endpoints = endpoints
        self.homes = homes
        self.prefills = prefills
        self.decodes = decodes
        self.log_price = 0.0

    def batch(self, context: float, itl_seconds: float | None) -> float:
        """Returns how many sequences of `context` tokens an instance can run within the TPOT
        target.
        """
        profile = self.profile
        max_sequences = min(float(profile.max_sequences), profile.kv_tokens / context)
        root = (math.sqrt(CROWD_SIGMAS * CROWD_SIGMAS + 4.0 * max_sequences) - CROWD_SIGMAS) / 2.0
        batch = root * root
        if itl_seconds is not None:
            step_budget = ITL_SHARE * itl_seconds - profile.step_seconds - profile.weights_seconds
            sequence_seconds = profile.sequence_seconds + profile.resident_token_seconds * context
            if sequence_seconds * batch > step_budget:
                batch = step_budget / sequence_seconds if sequence_seconds > 0.0 else 0.0
        return max(MIN_BATCH, batch)

    def work_seconds(
        self, prompt: float, cached: float, output: float, ttft_seconds: float | None, itl_seconds: float | None
    ) -> float:
        """Returns the seconds of one instance that a request takes.

        Infinite if the request does not fit into the KV cache, or cannot meet the objectives even
        on an idle instance.
        """
        profile, seconds = self.profile, 0.0
        context = prompt + output
        if context > profile.kv_tokens:
            return math.inf
        if self.prefills:
            seconds = profile.prefill_time(prompt, cached)
            if ttft_seconds is not None and seconds > ttft_seconds:
                return math.inf
        if not self.decodes:
            return seconds
        fixed, sequence_seconds = (
            profile.step_seconds,
            profile.sequence_seconds + profile.resident_token_seconds * context,
        )
        alone = fixed + max(profile.weights_seconds, profile.prefill_token_seconds) + sequence_seconds
        if itl_seconds is not None and output >= 2.0 and alone > itl_seconds:
            return math.inf
        batch = self.batch(context, itl_seconds)
        step = fixed + max(profile.weights_seconds, profile.prefill_token_seconds * batch) + sequence_seconds * batch
        return seconds + output * step / batch

    def cached_tokens(self, match: PrefixMatch, prompt: float, tokens_per_byte: float) -> float:
        """Returns the longest prefix that an instance of this kind has cached, in prompt tokens."""
        if not match.masks:
            return 0.0
        bits = 0
        for endpoint in self.endpoints:
            bits |= endpoint.cache_bit
        index = len(match.masks)
        while index:
            index -= 1
            if match.masks[index] & bits:
                return min(prompt, match.matched_bytes[index] * tokens_per_byte)
        return 0.0

    def load_share(self, loads: SampledLoads, ttft_seconds: float, itl_seconds: float | None) -> float:
        """Returns the in-flight load of the kind's instances as a share of what they can take.

        1 is a full batch, or a backlog that is long for the objective. The share may exceed 1.
        """
        inflight, tokens, backlog = 0, 0.0, 0.0
        for endpoint in self.endpoints:
            load = loads.estimate(endpoint.load)
            inflight += load.inflight
            tokens += load.inflight_tokens
            backlog += load.backlog_seconds
        if not inflight:
            return 0.0
        count = len(self.endpoints)
        share = backlog / (count * FULL_BACKLOG_SHARE * ttft_seconds)
        if self.decodes:
            share += inflight / (count * self.batch(max(1.0, tokens / inflight), itl_seconds))
        return share


class RankedKinds:
    """The kinds of accelerator that can serve a request, best first.

    - work_seconds, costs: each kind's work, and its work times its price.
    - charged_index: index of the cheapest kind. If it is not 0, the first kind is faster and
      lightly loaded.
    """

    __slots__ = ("charged_index", "costs", "kinds", "objective_seconds", "work_seconds")

    def __init__(
        self,
        kinds: list[AcceleratorKind],
        work_seconds: list[float],
        costs: list[float],
        charged_index: int,
        objective_seconds: float,
    ) -> None:
        self.kinds = kinds
        self.work_seconds = work_seconds
        self.costs = costs
        self.charged_index = charged_index
        self.objective_seconds = objective_seconds


class AcceleratorSelector:
    """The kinds of one model and their prices."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._kinds: list[AcceleratorKind] = []
        self._homes: dict[str, tuple[dict[str, float], HomeRings]] = {}
        self._mean_load = 0.0
        self._output_sums = [DEFAULT_OUTPUT_TOKENS * _PRIOR_ANSWERS] * _PROMPT_BANDS
        self._answer_counts = [_PRIOR_ANSWERS] * _PROMPT_BANDS
        self._objectives = SloTargets()
        self.has_choice = False

    def update(self, ready: Sequence[Instance], endpoints: Mapping[str, Endpoint], objectives: SloTargets) -> None:
        """Sets the ready instances and groups them into kinds. Kinds that stay keep their
        prices.

        With a single kind, or with instances of several roles, `has_choice` is False.
        """
        self._objectives, itl_seconds = objectives, objectives.itl_seconds
        roles = {item.role for item in ready}
        pools: dict[str, list[Instance]] = {}
        for item in ready:
            pools.setdefault(item.pool, []).append(item)
        self.has_choice = False
        if len(pools) < 2 or len(roles) != 1:
            self._kinds = []
            return
        role = next(iter(roles))
        groups = _group_pools(pools, endpoints, role, itl_seconds)
        self._homes = {name: homes for name, homes in self._homes.items() if name in groups}
        if len(groups) < 2:
            self._kinds = []
            return
        former_prices = {kind.name: kind.log_price for kind in self._kinds}
        self._kinds = [
            _create_kind(name, group, endpoints, role, self._homes_for(name, {item.id: item.weight for item in group}))
            for name, group in groups.items()
        ]
        self._set_prices(former_prices, itl_seconds)
        self.has_choice = True

    def _homes_for(self, name: str, weights: dict[str, float]) -> HomeRings:
        """Returns the hash rings of a kind. They are rebuilt only when its instances or weights
        change, so a newly learned profile moves no key.
        """
        before = self._homes.get(name)
        if before is None or before[0] != weights:
            before = self._homes[name] = (weights, HomeRings(weights, secret=self._secret))
        return before[1]

    def _set_prices(self, former_prices: Mapping[str, float], itl_seconds: float | None) -> None:
        """Sets the prices of the kinds. A new kind gets the price at which a usual request costs
        the same there as on the others.
        """
        usual_seconds = [min(1e6, kind.work_seconds(*_USUAL_SHAPE, None, itl_seconds)) for kind in self._kinds]
        known = [
            former_prices[kind.name] + math.log(work)
            for kind, work in zip(self._kinds, usual_seconds, strict=True)
            if kind.name in former_prices
        ]
        level = sum(known) / len(known) if known else sum(map(math.log, usual_seconds)) / len(usual_seconds)
        for kind, work in zip(self._kinds, usual_seconds, strict=True):
            kind.log_price = former_prices[kind.name] if kind.name in former_prices else level - math.log(work)

    def expected_output(self, prompt: float, max_tokens: float | None) -> float:
        """Returns the expected output tokens for a prompt of `prompt` tokens.

        max_tokens: the client's limit; None without one.
        """
        band = _prompt_band(prompt)
        mean = self._output_sums[band] / self._answer_counts[band]
        return mean if not max_tokens or max_tokens > mean else max_tokens

    def observe_answer(self, prompt: float, output: float) -> None:
        """Learns the output tokens of a response to a prompt of `prompt` tokens."""
        band = _prompt_band(prompt)
        remembered = min(1.0, _MAX_ANSWERS / self._answer_counts[band])
        self._output_sums[band] = self._output_sums[band] * remembered + min(output, _MAX_OUTPUT)
        self._answer_counts[band] = self._answer_counts[band] * remembered + 1.0

    def rank(
        self,
        prompt: float,
        max_tokens: float | None,
        match: PrefixMatch,
        tokens_per_byte: float,
        loads: SampledLoads,
    ) -> RankedKinds:
        """Returns the kinds that can serve a prompt: the cheapest first, unless a faster one is
        lightly loaded.

        prompt: in tokens.
        """
        output, itl_seconds = self.expected_output(prompt, max_tokens), self._objectives.itl_seconds
        limit = self._objectives.ttft_limit_seconds(prompt)
        ttft_seconds = DEFAULT_TTFT_SECONDS if limit is None else limit
        priced: list[tuple[float, int, float]] = []
        for index, kind in enumerate(self._kinds):
            work = kind.work_seconds(
                prompt, kind.cached_tokens(match, prompt, tokens_per_byte), output, ttft_seconds, itl_seconds
            )
            if work < math.inf:
                excess_load = max(0.0, kind.load_share(loads, ttft_seconds, itl_seconds) - HEAVY_LOAD)
                priced.append(
                    (work * math.exp(kind.log_price + HEAVY_LOAD_PRICE * min(excess_load, MAX_HEAVY_LOAD)), index, work)
                )
        priced.sort()
        kinds = [self._kinds[index] for _, index, _ in priced]
        work_seconds, costs = [work for _, _, work in priced], [cost for cost, _, _ in priced]
        first = 0
        for index in range(1, len(kinds)):
            faster = work_seconds[index] < work_seconds[first]
            if faster and kinds[index].load_share(loads, ttft_seconds, itl_seconds) < LIGHT_LOAD:
                first = index
        if first:
            for values in (work_seconds, costs):
                values.insert(0, values.pop(first))
            kinds.insert(0, kinds.pop(first))
        return RankedKinds(kinds, work_seconds, costs, 1 if first else 0, ttft_seconds)

    def charge(self, ranked: RankedKinds) -> None:
        """Charges a request to the cheapest of the ranked kinds, which raises that kind's price.

        All prices are then scaled so that the mean of their logarithms is 0.
        """
        if not ranked.kinds:
            return
        kind = ranked.kinds[ranked.charged_index]
        load = ranked.costs[ranked.charged_index] / math.exp(kind.log_price) / len(kind.endpoints)
        self._mean_load = load if not self._mean_load else self._mean_load + MEAN_SMOOTHING * (load - self._mean_load)
        step = PRICE_STEP * min(MAX_STEP_RATIO, load / self._mean_load)
        kind.log_price += step
        middle = sum([each.log_price for each in self._kinds]) / len(self._kinds)
        for each in self._kinds:
            each.log_price = max(-MAX_LOG_PRICE, min(MAX_LOG_PRICE, each.log_price - middle))


def _prompt_band(prompt: float) -> int:
    return min(_PROMPT_BANDS - 1, max(0, int(math.log2(max(1.0, prompt)))))


def _group_pools(
    pools: Mapping[str, list[Instance]], endpoints: Mapping[str, Endpoint], role: Role, itl_seconds: float | None
) -> dict[str, list[Instance]]:
    """Returns the instances by kind. Pools of one kind are merged under the name of the first."""
    groups: dict[str, list[Instance]] = {}
    work_by_pool: dict[str, list[float]] = {}
    for name, items in sorted(pools.items()):
        kind = _create_kind(name, items, endpoints, role, HomeRings({}, secret=b""))
        works = [kind.work_seconds(prompt, 0.0, output, None, itl_seconds) for prompt, output in REFERENCE_SHAPES]
        same = [
            other
            for other, theirs in work_by_pool.items()
            if all(_is_comparable(mine, their) for mine, their in zip(works, theirs, strict=True))
        ]
        if same:
            groups[same[0]] = sorted([*groups[same[0]], *items], key=_by_id)
        else:
            groups[name], work_by_pool[name] = list(items), works
    return groups


def _is_comparable(first: float, second: float) -> bool:
    if first == math.inf or second == math.inf:
        return first == second
    return max(first, second) <= SAME_KIND_RATIO * min(first, second)


def _create_kind(
    name: str, instances: Sequence[Instance], endpoints: Mapping[str, Endpoint], role: Role, homes: HomeRings
) -> AcceleratorKind:
    """Returns a kind. Its profile is that of the median instance by prefill time.

    Why: one slow engine does not make another accelerator.
    """
    own = [endpoints[item.id] for item in instances]
    middle = sorted(own, key=_by_prefill)[len(own) // 2]
    return AcceleratorKind(name, middle.profile, own, homes, role is not Role.DECODE, role is not Role.PREFILL)


def _by_prefill(endpoint: Endpoint) -> tuple[float, str]:
    return endpoint.profile.prefill_time(1_000.0), endpoint.id


def _by_id(item: Instance) -> str:
    return item.id


class KindExplanation:
    """The explanation of a decision inside a kind, with the reason for the kind."""

    __slots__ = ("_decision", "_kind_index", "_ranked")

    def __init__(self, decision: Decision, ranked: RankedKinds, kind_index: int) -> None:
        self._decision = decision
        self._ranked = ranked
        self._kind_index = kind_index

    def reason(self) -> str:
        """Returns the decision's reason, followed by the reason for the kind."""
        ranked, kind_index = self._ranked, self._kind_index
        if kind_index < 0:
            return f"{self._decision.reason}; no kind of accelerator has an instance that meets the objective"
        name = ranked.kinds[kind_index].name
        if kind_index:
            why = f"no instance of {ranked.kinds[0].name} meets the objective"
        elif ranked.charged_index:
            why = "faster, and lightly loaded"
        elif len(ranked.kinds) == 1:
            why = "no other kind can serve it within the objectives"
        else:
            why = f"at their prices {ranked.costs[1] / ranked.costs[0]:.1f} x as dear on {ranked.kinds[1].name}"
        return f"{self._decision.reason}; on {name} ({format_duration(ranked.work_seconds[kind_index])} of an instance): {why}"

    def rejected(self) -> tuple[RejectedCandidate, ...]:
        return self._decision.rejected

    def inputs(self) -> Mapping[str, DecisionInput]:
        """Returns the inputs of the decision, and the work in seconds and the price of each
        kind.
        """
        table = dict(self._decision.inputs)
        ranked = self._ranked
        for kind, work, cost in zip(ranked.kinds, ranked.work_seconds, ranked.costs, strict=True):
            table[f"{kind.name}/work_seconds"] = DecisionInput(work)
            table[f"{kind.name}/price"] = DecisionInput(cost / work)
        return table


def with_kind(decision: Decision, ranked: RankedKinds, kind_index: int) -> Decision:
    """Returns `decision` with the reason for its kind.

    kind_index: -1 if all kinds were compared together.
    """
    return Decision(
        decision.chosen,
        decision.rule,
        cost_seconds=decision.cost_seconds,
        home=decision.home,
        matched_tokens=decision.matched_tokens,
        ttft_seconds=decision.ttft_seconds,
        explanation=KindExplanation(decision, ranked, kind_index),
        source=decision.source,
    )


def decide_by_kind(
    ranked: RankedKinds, decide_among: Callable[[HomeRings, list[Endpoint]], Decision], excluded: frozenset[str]
) -> Decision | None:
    """Returns the decision of the first kind that meets the objective; None if no kind does.

    - decide_among: decides among the endpoints of a kind, given its hash rings.
    - excluded: instances that may not be chosen.
    """
    for kind_index, kind in enumerate(ranked.kinds):
        endpoints = (
            [endpoint for endpoint in kind.endpoints if endpoint.id not in excluded] if excluded else kind.endpoints
        )
        if not endpoints:
            continue
        decision = decide_among(kind.homes, endpoints)
        if decision.ttft_seconds is not None and decision.ttft_seconds <= ranked.objective_seconds:
            return with_kind(decision, ranked, kind_index)
    return None

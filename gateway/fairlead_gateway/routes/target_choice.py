"""From a client's name to the target of a request.

The target is a pure function of the route, the conversation and the weights: a conversation stays
with its model as long as these stay. Targets are chosen by weighted rendezvous hashing: each target
draws a number from the conversation, and the highest one wins. After a change of a weight, only the
conversations move that must: to a target that got more, or away from one that got less.

Source: Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", SPAA 2005 (logarithmic
method).
"""

from collections.abc import Container, Iterable
from math import log
from typing import Final, NamedTuple, Protocol

from xxhash import xxh3_64_intdigest

from fairlead.routes.model import Route, RouteRule
from fairlead_gateway.routes.rewriting import RewritePlan

_HASH: Final = xxh3_64_intdigest
_STEP: Final = 2.0**-52
_PARTS_PER_PERCENT: Final = 10_000
ONLY_TARGET: Final = "only-target"
"""The rule has one target with a weight above 0."""
NO_TARGET: Final = "no-target"
"""All weights of the rule are 0."""


class RequestFacts(Protocol):
    """The facts about a request that decide. Each method is called only if a route needs it."""

    def header(self, name: str) -> str | None:
        """Returns the value of a header, named in lower case; None without it."""

    def tenant(self) -> str | None:
        """Returns the name of the tenant; None without one."""

    def conversation(self) -> tuple[bytes, str]:
        """Returns what identifies the conversation, in few bytes, and the name of its source."""

    def prompt_tokens(self) -> int:
        """Returns the estimated tokens of the prompt; never fewer for a longer conversation."""

    def answer_limit(self) -> int | None:
        """Returns the client's limit of the answer in tokens; None without one."""


class FallbackStep(NamedTuple):
    """A model that has not answered, and the one that got the request instead.

    kind: of the failure.
    reason: why this model was next, as text.
    """

    failed: str
    kind: str
    model: str
    reason: str


class RouteDecision:
    """The target of a request, and why. Treat it as immutable.

    name: the name that the client wrote.
    route: key of the route.
    target: key of the model; None if all weights are 0.
    basis: what the choice hangs on: the source of the conversation, or `ONLY_TARGET` or
        `NO_TARGET`.
    override: number of the override that took the request, from 0; None if none did.
    weight, total_weight: of the target, and of all targets.
    rewrite: the plan of the parameters that the route sets; None if it sets none.
    changes: the parameters that were set, as `name=value`.
    steps: the fallbacks that the request has taken, in order.
    withheld: models outside the cluster that the request's tenant refuses, in order.
    shadow: key of the model that gets a copy of the request; None: none does.
    context_tokens: the estimated tokens of prompt and answer, if the choice hangs on them; else 0.
    """

    __slots__ = (
        "basis",
        "changes",
        "context_tokens",
        "name",
        "override",
        "rewrite",
        "route",
        "shadow",
        "steps",
        "target",
        "total_weight",
        "weight",
        "withheld",
    )

    def __init__(
        self, name: str, route: str, target: str | None, basis: str, override: int | None, weights: tuple[int, int]
    ) -> None:
        self.name = name
        self.route = route
        self.target = target
        self.basis = basis
        self.override = override
        self.weight, self.total_weight = weights
        self.rewrite: RewritePlan | None = None
        self.changes: tuple[str, ...] = ()
        self.steps: tuple[FallbackStep, ...] = ()
        self.withheld: tuple[str, ...] = ()
        self.shadow: str | None = None
        self.context_tokens: int = 0

    def with_step(self, step: FallbackStep) -> "RouteDecision":
        """Returns the decision after one more fallback."""
        weights = (self.weight, self.total_weight)
        decision = RouteDecision(self.name, self.route, self.target, self.basis, self.override, weights)
        decision.rewrite, decision.changes = self.rewrite, self.changes
        decision.steps, decision.withheld = (*self.steps, step), self.withheld
        decision.shadow, decision.context_tokens = self.shadow, self.context_tokens
        return decision

    def describe(self) -> str:
        """Returns the decision as a sentence, with the parameters that the route has set.

        Further parts name the model that gets a copy, and each fallback.
        """
        changed = f"; sets {', '.join(self.changes)}" if self.changes else ""
        copied = "" if self.shadow is None else f"; a copy is for {self.shadow}"
        parts = [f"; {step.failed} {step.kind} → {step.model}, {step.reason}" for step in self.steps]
        if self.withheld:
            parts.append(f"; withheld: {', '.join(self.withheld)}, since the tenant refuses external endpoints")
        return self._describe_target() + changed + copied + "".join(parts)

    def _describe_target(self) -> str:
        taken = "" if self.override is None else f", overrides[{self.override}]"
        if self.context_tokens:
            taken += f" by about {self.context_tokens:,} tokens of context"
        where = f"{self.name} is the route {self.route}{taken}"
        if self.target is None:
            return f"{where}: no target has a weight above 0"
        if self.basis == ONLY_TARGET:
            return f"{where} → {self.target}, its only target"
        return f"{where} → {self.target}, which gets {self.weight} of {self.total_weight}, by {self.basis}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RouteDecision):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"RouteDecision({self.describe()!r})"

    def _values(self) -> tuple[object, ...]:
        weights = self.weight, self.total_weight
        where = self.name, self.route, self.target, self.basis, self.override
        return *where, weights, self.changes, self.steps, self.withheld, self.shadow, self.context_tokens


def is_drawn(conversation: bytes, seed: int, percent: int) -> bool:
    """Returns whether a conversation is among this percentage of all.

    A larger percentage draws all that a smaller one does.
    """
    drawn = _HASH(conversation, seed)
    return drawn % (100 * _PARTS_PER_PERCENT) < percent * _PARTS_PER_PERCENT


class ShadowResolver:
    """The choice of the conversations that are copied to a route's shadow, by a hash.

    Why by conversation: the shadow's cache then holds earlier turns, as the target's does.
    """

    __slots__ = ("_model", "_percent", "_seed")

    def __init__(self, route: str, model: str, percent: int) -> None:
        self._model = model
        self._percent = percent
        self._seed: int = _HASH(f"{route}\0shadow".encode())

    def resolve(self, target: str | None, facts: RequestFacts) -> str | None:
        """Returns the model that gets a copy of a request for `target`; None if none does.

        A request that goes to the shadow itself is not copied.
        """
        if target is None or target == self._model or self._percent == 0:
            return None
        if self._percent < 100 and not is_drawn(facts.conversation()[0], self._seed, self._percent):
            return None
        return self._model


class RuleResolver:
    """A rule, with what each request reads of it.

    Why: the module of `Route` is not compiled, and each attribute that is read there costs 140
    instructions.
    """

    __slots__ = (
        "_headers",
        "_models",
        "_only",
        "_plan",
        "_route",
        "_seeds",
        "_shadow",
        "_tenants",
        "_total_weight",
        "_weights",
        "min_context",
        "number",
    )

    def __init__(self, route: Route, rule: RouteRule, number: int | None) -> None:
        targets = [target for target in rule.targets if target.weight > 0]
        self.number = number
        self._route: str = route.key
        self._headers: list[tuple[str, str]] = list(rule.headers)
        self._tenants: frozenset[str] = rule.tenants
        self.min_context: int = rule.min_context_tokens
        self._models: list[str] = [target.model for target in targets]
        self._weights: list[int] = [target.weight for target in targets]
        self._total_weight: int = sum(self._weights)
        self._seeds: list[int] = [_HASH(f"{route.key}\0{target.model}".encode()) for target in targets]
        self._only: bool = len(targets) == 1
        rewrite = rule.rewrite
        has_changes = rewrite is not None and bool(rewrite.defaults or rewrite.caps)
        self._plan: RewritePlan | None = RewritePlan(rewrite) if has_changes and rewrite is not None else None
        shadow = route.shadow
        self._shadow: ShadowResolver | None = (
            None if shadow is None else ShadowResolver(route.key, shadow.model, shadow.percent)
        )

    def matches(self, facts: RequestFacts) -> bool:
        """Returns whether a request meets all conditions but that of its length."""
        if self._tenants and facts.tenant() not in self._tenants:
            return False
        return all(facts.header(name) == value for name, value in self._headers)

    def context_tokens(self, facts: RequestFacts) -> int:
        """Returns the tokens of context that a request needs if it sets what this rule sets."""
        limit = facts.answer_limit()
        plan = self._plan
        answer = (limit or 0) if plan is None else plan.answer_tokens(limit)
        return facts.prompt_tokens() + answer

    def resolve(self, name: str, facts: RequestFacts) -> RouteDecision:
        """Returns the target of a request that this rule takes."""
        decision = self._choose(name, facts)
        if self._plan is not None:
            decision.rewrite = self._plan
        if self._shadow is not None:
            decision.shadow = self._shadow.resolve(decision.target, facts)
        return decision

    def _choose(self, name: str, facts: RequestFacts) -> RouteDecision:
        if not self._models:
            return RouteDecision(name, self._route, None, NO_TARGET, self.number, (0, 0))
        if self._only:
            weight = self._weights[0]
            return RouteDecision(name, self._route, self._models[0], ONLY_TARGET, self.number, (weight, weight))
        conversation, source = facts.conversation()
        chosen, highest = 0, 0.0
        for index in range(len(self._models)):
            drawn = _HASH(conversation, self._seeds[index])
            score = -self._weights[index] / log(((drawn >> 12) + 0.5) * _STEP)
            if score > highest:
                chosen, highest = index, score
        weights = (self._weights[chosen], self._total_weight)
        return RouteDecision(name, self._route, self._models[chosen], source, self.number, weights)


class RouteTable:
    """The routes that clients may name.

    taken: names that belong to models; a route has none of them.
    """

    def __init__(self, routes: Iterable[Route], taken: Container[str] = frozenset()) -> None:
        self._rules: dict[str, list[RuleResolver]] = {}
        for route in routes:
            *overrides, rest = route.all_rules()
            rules = [RuleResolver(route, rule, number) for number, rule in enumerate(overrides)]
            rules.append(RuleResolver(route, rest, None))
            for name in (route.key, *route.names):
                if name not in taken:
                    self._rules.setdefault(name, rules)

    def __len__(self) -> int:
        return len(self._rules)

    def resolve(self, name: str, facts: RequestFacts) -> RouteDecision | None:
        """Returns the target of a request for a name; None if the name is not one of a route."""
        rules = self._rules.get(name)
        if rules is None:
            return None
        last = len(rules) - 1
        needed = -1
        for index in range(last):
            rule = rules[index]
            if rule.matches(facts):
                if rule.min_context == 0:
                    return rule.resolve(name, facts)
                if needed < 0:  # with the answers that the other targets would give
                    needed = rules[last].context_tokens(facts)
                if needed >= rule.min_context:
                    decision = rule.resolve(name, facts)
                    decision.context_tokens = needed
                    return decision
        return rules[last].resolve(name, facts)

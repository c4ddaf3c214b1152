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

import xxhash

from fairlead.routes.model import Route, RouteRule
from fairlead.routes.rewriting import RewritePlan

_STEP: Final = 2.0**-52
ONLY_TARGET: Final = "only-target"
"""The rule has one target with a weight above 0."""
NO_TARGET: Final = "no-target"
"""All weights of the rule are 0."""


class RequestFacts(Protocol):
    """The facts about a request that decide. Each method is called only if a route needs it."""

    def header(self, name: str) -> str | None:
        """Returns the value of a header, named in lower case; None without it."""
        ...

    def tenant(self) -> str | None:
        """Returns the name of the tenant; None without one."""
        ...

    def conversation(self) -> tuple[bytes, str]:
        """Returns what identifies the conversation, in few bytes, and the name of its source."""
        ...


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
    """

    __slots__ = (
        "basis",
        "changes",
        "name",
        "override",
        "rewrite",
        "route",
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

    def with_step(self, step: FallbackStep) -> "RouteDecision":
        """Returns the decision after one more fallback."""
        weights = (self.weight, self.total_weight)
        decision = RouteDecision(self.name, self.route, self.target, self.basis, self.override, weights)
        decision.rewrite, decision.changes = self.rewrite, self.changes
        decision.steps, decision.withheld = (*self.steps, step), self.withheld
        return decision

    def describe(self) -> str:
        """Returns the decision as a sentence, with the parameters that the route has set, and a
        further part for each fallback.
        """
        changed = f"; sets {', '.join(self.changes)}" if self.changes else ""
        parts = [f"; {step.failed} {step.kind} → {step.model}, {step.reason}" for step in self.steps]
        if self.withheld:
            parts.append(f"; withheld: {', '.join(self.withheld)}, since the tenant refuses external endpoints")
        return self._describe_target() + changed + "".join(parts)

    def _describe_target(self) -> str:
        taken = "" if self.override is None else f", overrides[{self.override}]"
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
        chosen = self.name, self.route, self.target, self.basis, self.override, weights
        return *chosen, self.changes, self.steps, self.withheld


class RuleResolver:
    """A rule, with what each request reads of it.

    Why: the module of `Route` is not compiled, and each attribute that is read there costs 140
    instructions.
    """

    __slots__ = ("_headers", "_models", "_only", "_plan", "_route", "_seeds", "_tenants", "_weights", "number")

    def __init__(self, route: Route, rule: RouteRule, number: int | None) -> None:
        targets = [target for target in rule.targets if target.weight > 0]
        self.number = number
        self._route: str = route.key
        self._headers: list[tuple[str, str]] = list(rule.headers)
        self._tenants: frozenset[str] = rule.tenants
        self._models: list[str] = [target.model for target in targets]
        self._weights: list[int] = [target.weight for target in targets]
        self._seeds: list[int] = [
            xxhash.xxh3_64_intdigest(f"{route.key}\0{target.model}".encode()) for target in targets
        ]
        self._only: bool = len(targets) == 1
        rewrite = rule.rewrite
        has_changes = rewrite is not None and bool(rewrite.defaults or rewrite.caps)
        self._plan: RewritePlan | None = RewritePlan(rewrite) if has_changes and rewrite is not None else None

    def matches(self, facts: RequestFacts) -> bool:
        """Returns whether a request meets all conditions."""
        if self._tenants and facts.tenant() not in self._tenants:
            return False
        return all(facts.header(name) == value for name, value in self._headers)

    def resolve(self, name: str, facts: RequestFacts) -> RouteDecision:
        """Returns the target of a request that this rule takes."""
        decision = self._choose(name, facts)
        if self._plan is not None:
            decision.rewrite = self._plan
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
            drawn = xxhash.xxh3_64_intdigest(conversation, self._seeds[index])
            score = -self._weights[index] / log(((drawn >> 12) + 0.5) * _STEP)
            if score > highest:
                chosen, highest = index, score
        weights = (self._weights[chosen], sum(self._weights))
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
        for index in range(last):
            if rules[index].matches(facts):
                return rules[index].resolve(name, facts)
        return rules[last].resolve(name, facts)

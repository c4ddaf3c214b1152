"""Routes as gateways see them: immutable data in a fleet, replaced as a whole on every change."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class RouteTarget:
    """A model that requests of a route may go to.

    model: its key, `namespace/name`.
    weight: its share against the other targets of the same rule; 0: no requests.
    """

    model: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class RequestRewrite:
    """Parameters that a route sets in the bodies of requests, by their names there.

    defaults: of requests that do not set them.
    caps: the greatest values.
    """

    defaults: tuple[tuple[str, int | float], ...] = ()
    caps: tuple[tuple[str, int | float], ...] = ()


@dataclass(frozen=True, slots=True)
class RouteRule:
    """The targets of the requests that meet all conditions of a rule.

    headers: names in lower case, and the exact values that a request must have.
    tenants: names of tenants, one of which must have sent it; empty: any client.
    min_context_tokens: the tokens of prompt and answer together that it must need, as estimated.
    rewrite: parameters that it sets; None: none.
    """

    targets: tuple[RouteTarget, ...]
    headers: tuple[tuple[str, str], ...] = ()
    tenants: frozenset[str] = frozenset()
    rewrite: RequestRewrite | None = None
    min_context_tokens: int = 0

    def models(self) -> list[str]:
        return [target.model for target in self.targets if target.weight > 0]


class FailureKind(StrEnum):
    """Why a model has not answered a request."""

    NO_CAPACITY = "NoCapacity"
    UNAVAILABLE = "Unavailable"
    CONTEXT_TOO_LONG = "ContextTooLong"
    DEADLINE_UNATTAINABLE = "DeadlineUnattainable"
    REFUSED = "Refused"


@dataclass(frozen=True, slots=True)
class Fallback:
    """A model that answers where another one has not.

    to: key of the model.
    when: the failures after which it may answer.
    after: key of the model that must have failed; None: any target, or a fallback above this one.
    """

    to: str
    when: frozenset[FailureKind]
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Shadow:
    """The model that gets copies of a route's requests. `/api/stats` has what became of them.

    - model: Its key.
    - percent: Share of the conversations whose requests are copied.
    """

    model: str
    percent: int = 100


@dataclass(frozen=True, slots=True)
class Route:
    """A name for clients, with the targets that it stands for.

    names: the names by which clients reach it, besides its key.
    targets: of requests that no override takes.
    overrides: the first one whose conditions a request meets takes it.
    rewrite: parameters that it sets in requests that no override takes; None: none.
    fallbacks: the models that answer where a target has not.
    shadow: the model that gets copies; None: none does.
    """

    namespace: str
    name: str
    targets: tuple[RouteTarget, ...]
    overrides: tuple[RouteRule, ...] = ()
    names: tuple[str, ...] = ()
    rewrite: RequestRewrite | None = None
    fallbacks: tuple[Fallback, ...] = ()
    shadow: Shadow | None = None

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    def all_rules(self) -> tuple[RouteRule, ...]:
        return (*self.overrides, RouteRule(self.targets, rewrite=self.rewrite))

    def target_paths(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yields where each target stands in the spec, and the key of its model."""
        for index, target in enumerate(self.targets):
            yield ("targets", index, "model"), target.model
        for number, override in enumerate(self.overrides):
            for index, target in enumerate(override.targets):
                yield ("overrides", number, "targets", index, "model"), target.model

    def model_paths(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yields where the spec names a model, and the key of that model."""
        yield from self.target_paths()
        yield from self.fallback_paths()
        if self.shadow is not None:
            yield ("shadow", "model"), self.shadow.model

    def fallback_paths(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yields where each fallback names a model in the spec, and the key of that model."""
        for index, fallback in enumerate(self.fallbacks):
            yield ("onFailure", index, "to"), fallback.to
            if fallback.after is not None:
                yield ("onFailure", index, "after"), fallback.after

    def models(self) -> list[str]:
        return list(dict.fromkeys(key for rule in self.all_rules() for key in rule.models()))


def visible_route(route: Route, may_use: Callable[[str], bool]) -> Route | None:
    """Returns the route without models that may not be used; None if a target is one of them.

    An override that leads to such a model takes no requests. Nor is such a model a fallback, or
    gets copies.

    may_use: returns whether a tenant, or the route's namespace, may use a model, given by its key.
    """
    if not all(map(may_use, RouteRule(route.targets).models())):
        return None
    overrides = tuple(rule for rule in route.overrides if all(map(may_use, rule.models())))
    fallbacks = tuple(fallback for fallback in route.fallbacks if may_use(fallback.to))
    shadow = route.shadow if route.shadow is not None and may_use(route.shadow.model) else None
    if len(overrides) == len(route.overrides) and len(fallbacks) == len(route.fallbacks) and shadow is route.shadow:
        return route
    return replace(route, overrides=overrides, fallbacks=fallbacks, shadow=shadow)

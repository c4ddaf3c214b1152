"""`spec` of a ModelRoute: names for clients, and the models that they stand for.

`onFailure` of a ModelRoute: models that answer where a target has not.

`rewrite` of a ModelRoute: defaults and caps of parameters in the bodies of requests.

`shadow` of a ModelRoute: a model that gets copies of requests, and whose answers are dropped.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from fairlead.api.strict_model import FieldPath, Rule, StrictModel, api_field, api_list, field_error, list_map_schema
from fairlead.api.value_types import Choice, Int32, ServedName, ShortName
from fairlead.routes.fallback_graph import fallback_edges, find_loop
from fairlead.routes.model import FailureKind, Fallback, RequestRewrite, Route, RouteRule, RouteTarget, Shadow

_MAX_TOKENS: Final = 16_777_216
_Tokens = Annotated[Int32, Field(ge=1, le=_MAX_TOKENS)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]

MAX_WEIGHT: Final = 1_000_000
_HEADER_PATTERN: Final = r"^[A-Za-z0-9-]{1,64}$"
_HEADER: Final = re.compile(_HEADER_PATTERN.strip("^$"))
_VALUE: Final = re.compile(r"[!-~]([ -~]{0,254}[!-~])?")
_SECRET_HEADERS: Final = ("authorization", "x-api-key", "cookie", "proxy-authorization")


class ModelRouteShadow(StrictModel):
    """A model that gets copies of requests, at the lowest priority. Its answers are dropped."""

    model: Annotated[
        ServedName,
        api_field("`namespace/name` of a model, or the name of one in the route's namespace", "llama-8b-next"),
    ]
    percent: Annotated[
        Int32, api_field("share of the conversations whose requests are copied; 0: none", "10", ge=0, le=100)
    ] = 100


def check_shadow(route: Route, at: tuple[str, ...] = ()) -> None:
    """Raises the error of a field if no request of the route could be copied.

    at: path of the route's spec below the validated value.
    """
    shadow = route.shadow
    if shadow is not None and all(model == shadow.model for _, model in route.target_paths()):
        message = "the model is the only target of the route, so nothing can be compared"
        raise field_error(message, "name another model", at=(*at, "shadow", "model"))


def _sampling(description: str, example: str, **bounds: float) -> Any:
    return api_field(f"{description}; left out = the engine's default", example, **bounds)


class RequestDefaults(StrictModel):
    """Parameters that a request gets if it has none, by the names of the OpenAI API."""

    model_config = ConfigDict(alias_generator=None)

    max_tokens: Annotated[
        _Tokens | None,
        api_field(
            "maximum number of tokens in an answer; not above the cap; left out = the cap, or else the engine's default",
            "512",
        ),
    ] = None
    temperature: Annotated[float | None, _sampling("sampling temperature", "0.2", ge=0, le=2)] = None
    top_p: Annotated[float | None, _sampling("probability mass that tokens are chosen from", "0.9", gt=0, le=1)] = None
    top_k: Annotated[
        Int32 | None, _sampling("number of most likely tokens to sample from; -1: all", "20", ge=-1, le=1_000_000)
    ] = None
    min_p: Annotated[
        float | None,
        _sampling("minimum probability of a token, as a share of that of the likeliest", "0.05", ge=0, le=1),
    ] = None
    presence_penalty: Annotated[
        _Penalty | None, _sampling("penalty on each token that is in the answer already", "0.5")
    ] = None
    frequency_penalty: Annotated[
        _Penalty | None, _sampling("penalty on each token, times how often it is in the answer", "0.5")
    ] = None
    repetition_penalty: Annotated[float | None, _sampling("factor on repeated tokens", "1.05", gt=0, le=10)] = None


class RequestCaps(StrictModel):
    """Upper bounds of parameters, by the names of the OpenAI API."""

    model_config = ConfigDict(alias_generator=None)

    max_tokens: Annotated[
        _Tokens | None,
        api_field(
            "maximum number of tokens in an answer, by any name; also the limit of a request without one; left out = no cap",
            "1024",
        ),
    ] = None
    n: Annotated[
        Int32 | None,
        api_field(
            "maximum number of answers to a request; also bounds `best_of`; left out = no cap", "1", ge=1, le=128
        ),
    ] = None


class ModelRouteRewrite(StrictModel):
    """Parameters that a route sets in the bodies of requests. It changes no prompt."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.defaults) || !has(self.defaults.max_tokens) || !has(self.caps) || "
            "!has(self.caps.max_tokens) || self.defaults.max_tokens <= self.caps.max_tokens",
            message="the default of max_tokens is above its cap",
            fix="lower the default, or raise the cap",
            at=("defaults", "max_tokens"),
            violation=lambda rewrite: (
                rewrite.defaults.max_tokens is not None
                and rewrite.caps.max_tokens is not None
                and rewrite.defaults.max_tokens > rewrite.caps.max_tokens
            ),
        ),
    )

    defaults: RequestDefaults = api_field(
        "parameters of requests that do not set them", "{temperature: 0.2}", default_factory=RequestDefaults
    )
    caps: RequestCaps = api_field(
        "upper bounds; greater values of a request are lowered to them",
        "{max_tokens: 1024}",
        default_factory=RequestCaps,
    )

    def to_rewrite(self) -> RequestRewrite:
        defaults, caps = (values.model_dump(by_alias=True, exclude_none=True) for values in (self.defaults, self.caps))
        return RequestRewrite(tuple(defaults.items()), tuple(caps.items()))


class ModelRouteFallback(StrictModel):
    """A model that gets requests which another one has not answered, before their first byte."""

    unique: ClassVar[Mapping[str, str]] = {"when": "value"}

    when: Annotated[
        list[Choice[FailureKind]],
        api_field(
            "failures after which the model may answer: NoCapacity (engines or queues are full), "
            "Unavailable (no instance has answered), ContextTooLong (the engine says so), DeadlineUnattainable (a "
            "sheddable request would miss its TTFT target), Refused (another 4xx of the engine)",
            "[Unavailable, NoCapacity]",
            min_length=1,
            max_length=len(FailureKind),
            json_schema_extra={"x-kubernetes-list-type": "set"},
        ),
    ]
    to: Annotated[
        ServedName, api_field("`namespace/name` of a model, or the name of one in the route's namespace", "llama-8b")
    ]
    after: Annotated[
        ServedName | None,
        api_field(
            "the model that must have failed; left out = any target of the route, or the `to` of an earlier entry",
            "llama-70b",
        ),
    ] = None


def check_fallbacks(route: Route, at: tuple[str, ...] = ()) -> None:
    """Raises the error of a field if fallbacks form a loop, or can never be used.

    at: path of the route's spec below the validated value.
    """
    targets = list(dict.fromkeys(model for _, model in route.target_paths()))
    reached = set(targets).union(fallback.to for fallback in route.fallbacks)
    edges = fallback_edges(route)
    for number, fallback in enumerate(route.fallbacks):
        place: FieldPath = (*at, "onFailure", number)
        if fallback.after is None and targets == [fallback.to]:
            message = "the model is the only target of the route, so it cannot answer in its own place"
            raise field_error(message, "name another model", at=(*place, "to"))
        if fallback.after is not None and fallback.after not in reached:
            message = f"no request of the route goes to {fallback.after}"
            raise field_error(message, "name a target, or the `to` of an entry", at=(*place, "after"))
    loop = find_loop(edges)
    if loop:
        closing = {(loop[index], loop[index + 1]) for index in range(len(loop) - 1)}
        numbers = [
            number
            for number, fallback in enumerate(route.fallbacks)
            if any(fallback.to == target and fallback.after in (None, source) for source, target in closing)
        ]
        message = f"the fallbacks form a loop: {' → '.join(loop)}"
        fix = "remove this entry, or name with `after` the model that it follows"
        raise field_error(message, fix, at=(*at, "onFailure", numbers[-1], "to"))


def _check_headers(headers: dict[str, str]) -> dict[str, str]:
    seen: set[str] = set()
    for name, value in headers.items():
        if not _HEADER.fullmatch(name):
            raise field_error(f'"{name:.70}" is not the name of a header', "write it like x-canary", at=(name,))
        if name.lower() in _SECRET_HEADERS:
            raise field_error("this header holds a key", "match `tenants` instead", at=(name,))
        if name.lower() in seen:
            raise field_error(f"the header {name.lower()} is given twice", "remove one", at=(name,))
        if not _VALUE.fullmatch(value):
            fix = "use 1 to 256 printable ASCII characters without spaces at the ends"
            raise field_error("is not the value of a header", fix, at=(name,))
        seen.add(name.lower())
    return headers


class ModelRouteTarget(StrictModel):
    """A model that requests go to."""

    model: Annotated[
        ServedName,
        api_field("`namespace/name` of a model, or the name of one in the route's namespace", "chat/llama-70b"),
    ]
    weight: Annotated[
        Int32, api_field("share of the conversations, against the other targets; 0: none", "90", ge=0, le=MAX_WEIGHT)
    ] = 1


_Targets = Annotated[
    list[ModelRouteTarget],
    Field(min_length=1, max_length=16, json_schema_extra=list_map_schema("model")),
]


class ModelRouteOverride(StrictModel):
    """Other targets for the requests that meet all conditions."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.headers) && self.headers.size() > 0 || has(self.tenants) && self.tenants.size() > 0 || "
            "has(self.minContextTokens)",
            message="an override without conditions takes every request",
            fix="add `headers`, `tenants` or `minContextTokens`, or move its targets to spec.targets",
            violation=lambda override: (
                not override.headers and not override.tenants and override.min_context_tokens is None
            ),
        ),
    )

    headers: Annotated[
        dict[str, Annotated[str, Field(json_schema_extra={"maxLength": 256})]],
        api_field(
            "headers with the exact values that a request must have; case of names does not count",
            '{x-canary: "yes"}',
            max_length=8,
        ),
        AfterValidator(_check_headers),
    ] = Field(default_factory=dict)
    tenants: Annotated[
        list[ShortName], api_field("tenants, one of which must have sent the request", "[acme]", max_length=64)
    ] = Field(default_factory=list)
    min_context_tokens: Annotated[
        Int32 | None,
        api_field(
            "tokens of prompt and answer together that a request must need, at four bytes a token; left out = any number",
            "8192",
            ge=1,
            le=16_777_216,
        ),
    ] = None
    targets: Annotated[_Targets, api_field("models that these requests go to", "[{model: llama-8b}]")]
    rewrite: Annotated[
        ModelRouteRewrite | None,
        api_field(
            "parameters of these requests, in place of spec.rewrite; `{}`: they are not changed",
            "{caps: {max_tokens: 4096}}",
        ),
    ] = None


def _repeated_target(spec: "ModelRouteSpec") -> FieldPath | None:
    lists: list[tuple[FieldPath, Sequence[ModelRouteTarget]]] = [(("targets",), spec.targets)]
    lists += [(("overrides", number, "targets"), item.targets) for number, item in enumerate(spec.overrides)]
    for path, targets in lists:
        models = [target.model for target in targets]
        repeated = [index for index, model in enumerate(models) if model in models[:index]]
        if repeated:
            return (*path, repeated[0], "model")
    return None


class ModelRouteSpec(StrictModel):
    """Names for clients, and the models that they stand for."""

    served_names: list[ServedName] = api_list(
        "more names by which clients reach the route; `/` is allowed", "[acme/assistant]", max_length=16
    )
    targets: Annotated[
        _Targets,
        api_field(
            "models that requests go to, unless an override takes them",
            "[{model: llama-70b, weight: 9}, {model: llama-8b, weight: 1}]",
        ),
    ]
    overrides: list[ModelRouteOverride] = api_list(
        "other targets for some requests; the first one whose conditions a request meets takes it",
        '[{headers: {x-canary: "yes"}, targets: [{model: llama-8b}]}]',
        max_length=16,
    )
    rewrite: Annotated[
        ModelRouteRewrite | None,
        api_field(
            "parameters that the gateway sets in requests of this route",
            "{defaults: {temperature: 0.2}, caps: {max_tokens: 1024}}",
        ),
    ] = None

    on_failure: list[ModelRouteFallback] = api_list(
        "models that answer where a target has not; of several, the one with the least price × predicted "
        "latency ÷ share of healthy instances. No loops",
        "[{when: [Unavailable, NoCapacity], to: llama-8b}]",
        max_length=32,
    )
    shadow: Annotated[
        ModelRouteShadow | None,
        api_field(
            "a model that gets copies of requests while it has room; its answers are compared and dropped",
            "{model: llama-8b-next, percent: 10}",
        ),
    ] = None

    @model_validator(mode="after")
    def _check_unique_targets(self) -> Self:
        repeated = _repeated_target(self)
        if repeated is not None:
            raise field_error("the model is already a target here", "give it once, with one weight", at=repeated)
        return self

    def to_route(self, namespace: str, name: str) -> Route:
        """Returns the route as gateways use it, with all names that it claims."""
        rewrite = None if self.rewrite is None else self.rewrite.to_rewrite()
        overrides = tuple(
            RouteRule(
                _to_targets(override.targets, namespace),
                tuple(sorted((header.lower(), value) for header, value in override.headers.items())),
                frozenset(override.tenants),
                rewrite if override.rewrite is None else override.rewrite.to_rewrite(),
                override.min_context_tokens or 0,
            )
            for override in self.overrides
        )
        names = tuple(dict.fromkeys((name, *self.served_names)))
        fallbacks = tuple(
            Fallback(
                _to_key(item.to, namespace),
                frozenset(item.when),
                None if item.after is None else _to_key(item.after, namespace),
            )
            for item in self.on_failure
        )
        shadow = None if self.shadow is None else Shadow(_to_key(self.shadow.model, namespace), self.shadow.percent)
        targets = _to_targets(self.targets, namespace)
        return Route(namespace, name, targets, overrides, names, rewrite, fallbacks, shadow)


def check_models(route: Route, at: tuple[str, ...] = ()) -> None:
    """Raises the error of a field if the models of a route do not fit together.

    at: path of the route's spec below the validated value.
    """
    check_fallbacks(route, at)
    check_shadow(route, at)


def _to_targets(targets: Sequence[ModelRouteTarget], namespace: str) -> tuple[RouteTarget, ...]:
    return tuple(RouteTarget(_to_key(target.model, namespace), target.weight) for target in targets)


def _to_key(model: str, namespace: str) -> str:
    return model if "/" in model else f"{namespace}/{model}"

"""`spec` of a ModelRoute: names for clients, and the models that they stand for.

`onFailure` of a ModelRoute: models that answer where a target has not.

`rewrite` of a ModelRoute: defaults and caps of parameters in the bodies of requests.

`shadow` of a ModelRoute: a model that gets copies of requests, and whose answers are dropped.
"""

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Self

from pydantic import AfterValidator, Field, model_validator

from fairlead.api.strict_model import FieldPath, Rule, StrictModel, field_error
from fairlead.api.value_types import ServedName, ShortName, check_unique, list_map_schema
from fairlead.routes.fallback_graph import fallback_edges, find_loop
from fairlead.routes.model import FailureKind, Fallback, RequestRewrite, Route, RouteRule, RouteTarget, Shadow


class ModelRouteShadow(StrictModel):
    """A model that gets copies of requests, at the lowest priority. Its answers are dropped."""

    model: Annotated[
        ServedName,
        Field(
            description="`namespace/name` of a model, or the name of one in the route's namespace",
            examples=["llama-8b-next"],
        ),
    ]
    percent: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="share of the conversations whose requests are copied; 0: none",
            examples=["10"],
            json_schema_extra={"format": "int32"},
        ),
    ] = 100


def check_shadow(route: Route, at: tuple[str, ...] = ()) -> None:
    """Raises the error of a field if no request of the route could be copied.

    at: path of the route's spec below the validated value.
    """
    shadow = route.shadow
    if shadow is not None and all(model == shadow.model for _, model in route.target_paths()):
        message = "the model is the only target of the route, so nothing can be compared"
        raise field_error(message, "name another model", at=(*at, "shadow", "model"))


_MAX_TOKENS: Final = 16_777_216
_Tokens = Annotated[int, Field(ge=1, le=_MAX_TOKENS, json_schema_extra={"format": "int32"})]
_Penalty = Annotated[float, Field(ge=-2, le=2)]


class RequestDefaults(StrictModel):
    """Parameters that a request gets if it has none, by the names of the OpenAI API."""

    max_tokens: Annotated[
        _Tokens | None,
        Field(
            alias="max_tokens", description="maximum number of tokens in an answer; not above the cap", examples=["512"]
        ),
    ] = None
    temperature: Annotated[
        float | None, Field(alias="temperature", ge=0, le=2, description="sampling temperature", examples=["0.2"])
    ] = None
    top_p: Annotated[
        float | None,
        Field(alias="top_p", gt=0, le=1, description="probability mass that tokens are chosen from", examples=["0.9"]),
    ] = None
    top_k: Annotated[
        int | None,
        Field(
            alias="top_k",
            ge=-1,
            le=1_000_000,
            description="number of most likely tokens to sample from; -1: all",
            examples=["20"],
            json_schema_extra={"format": "int32"},
        ),
    ] = None
    min_p: Annotated[
        float | None,
        Field(
            alias="min_p",
            ge=0,
            le=1,
            description="minimum probability of a token, as a share of that of the likeliest",
            examples=["0.05"],
        ),
    ] = None
    presence_penalty: Annotated[
        _Penalty | None,
        Field(
            alias="presence_penalty",
            description="penalty on each token that is in the answer already",
            examples=["0.5"],
        ),
    ] = None
    frequency_penalty: Annotated[
        _Penalty | None,
        Field(
            alias="frequency_penalty",
            description="penalty on each token, times how often it is in the answer",
            examples=["0.5"],
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        Field(alias="repetition_penalty", gt=0, le=10, description="factor on repeated tokens", examples=["1.05"]),
    ] = None


class RequestCaps(StrictModel):
    """Upper bounds of parameters, by the names of the OpenAI API."""

    max_tokens: Annotated[
        _Tokens | None,
        Field(
            alias="max_tokens",
            description="maximum number of tokens in an answer, by any name; also the limit of a request without one",
            examples=["1024"],
        ),
    ] = None
    n: Annotated[
        int | None,
        Field(
            alias="n",
            ge=1,
            le=128,
            description="maximum number of answers to a request; also bounds `best_of`",
            examples=["1"],
            json_schema_extra={"format": "int32"},
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

    defaults: RequestDefaults = Field(
        default_factory=RequestDefaults,
        description="parameters of requests that do not set them",
        examples=["{temperature: 0.2}"],
    )
    caps: RequestCaps = Field(
        default_factory=RequestCaps,
        description="upper bounds; greater values of a request are lowered to them",
        examples=["{max_tokens: 1024}"],
    )

    def to_rewrite(self) -> RequestRewrite:
        """Returns the rewrite as gateways use it."""
        defaults, caps = (values.model_dump(by_alias=True, exclude_none=True) for values in (self.defaults, self.caps))
        return RequestRewrite(tuple(defaults.items()), tuple(caps.items()))


class ModelRouteFallback(StrictModel):
    """A model that gets requests which another one has not answered, before their first byte."""

    when: Annotated[
        list[Annotated[FailureKind, Field(strict=False)]],
        Field(
            min_length=1,
            max_length=len(FailureKind),
            description="failures after which the model may answer: NoCapacity (engines or queues are full), "
            "Unavailable (no instance has answered), ContextTooLong (the engine says so), DeadlineUnattainable (a "
            "sheddable request would miss its TTFT target), Refused (another 4xx of the engine)",
            examples=["[Unavailable, NoCapacity]"],
            json_schema_extra={"x-kubernetes-list-type": "set"},
        ),
    ]
    to: Annotated[
        ServedName,
        Field(
            description="`namespace/name` of a model, or the name of one in the route's namespace",
            examples=["llama-8b"],
        ),
    ]
    after: Annotated[
        ServedName | None,
        Field(
            description="the model that must have failed; by default, any target of the route, or the `to` of an "
            "earlier entry",
            examples=["llama-70b"],
        ),
    ] = None

    @model_validator(mode="after")
    def _check_unique_kinds(self) -> Self:
        check_unique("when", [kind.value for kind in self.when])
        return self


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


MAX_WEIGHT: Final = 1_000_000
_HEADER_PATTERN: Final = r"^[A-Za-z0-9-]{1,64}$"
_HEADER: Final = re.compile(_HEADER_PATTERN.strip("^$"))
_VALUE: Final = re.compile(r"[!-~]([ -~]{0,254}[!-~])?")
_SECRET_HEADERS: Final = ("authorization", "x-api-key", "cookie", "proxy-authorization")


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
        Field(
            description="`namespace/name` of a model, or the name of one in the route's namespace",
            examples=["chat/llama-70b"],
        ),
    ]
    weight: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_WEIGHT,
            description="share of the conversations, against the other targets; 0: none",
            examples=["90"],
            json_schema_extra={"format": "int32"},
        ),
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
        Field(
            max_length=8,
            description="headers with the exact values that a request must have; case of names does not count",
            examples=['{x-canary: "yes"}'],
        ),
        AfterValidator(_check_headers),
    ] = Field(default_factory=dict)
    tenants: Annotated[
        list[ShortName],
        Field(max_length=64, description="tenants, one of which must have sent the request", examples=["[acme]"]),
    ] = Field(default_factory=list)
    min_context_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            le=16_777_216,
            description="tokens of prompt and answer together that a request must need, at four bytes a token",
            examples=["8192"],
            json_schema_extra={"format": "int32"},
        ),
    ] = None
    targets: Annotated[
        _Targets, Field(description="models that these requests go to", examples=["[{model: llama-8b}]"])
    ]
    rewrite: Annotated[
        ModelRouteRewrite | None,
        Field(
            description="parameters of these requests, in place of spec.rewrite; `{}`: they are not changed",
            examples=["{caps: {max_tokens: 4096}}"],
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

    served_names: list[ServedName] = Field(
        default_factory=list,
        max_length=16,
        description="more names by which clients reach the route; `/` is allowed",
        examples=["[acme/assistant]"],
    )
    targets: Annotated[
        _Targets,
        Field(
            description="models that requests go to, unless an override takes them",
            examples=["[{model: llama-70b, weight: 9}, {model: llama-8b, weight: 1}]"],
        ),
    ]
    overrides: list[ModelRouteOverride] = Field(
        default_factory=list,
        max_length=16,
        description="other targets for some requests; the first one whose conditions a request meets takes it",
        examples=['[{headers: {x-canary: "yes"}, targets: [{model: llama-8b}]}]'],
    )
    rewrite: Annotated[
        ModelRouteRewrite | None,
        Field(
            description="parameters that the gateway sets in requests of this route",
            examples=["{defaults: {temperature: 0.2}, caps: {max_tokens: 1024}}"],
        ),
    ] = None

    on_failure: list[ModelRouteFallback] = Field(
        default_factory=list,
        max_length=32,
        description="models that answer where a target has not; of several, the one with the least price × predicted "
        "latency ÷ share of healthy instances. No loops",
        examples=["[{when: [Unavailable, NoCapacity], to: llama-8b}]"],
    )
    shadow: Annotated[
        ModelRouteShadow | None,
        Field(
            description="a model that gets copies of requests while it has room; its answers are compared and dropped",
            examples=["{model: llama-8b-next, percent: 10}"],
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

"""`spec` of a ModelRoute: names for clients, and the models that they stand for."""

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Self

from pydantic import AfterValidator, Field, model_validator

from fairlead.api.spec.route.fallbacks import ModelRouteFallback, check_fallbacks
from fairlead.api.spec.route.rewrite import ModelRouteRewrite
from fairlead.api.spec.route.shadow import ModelRouteShadow, check_shadow
from fairlead.api.strict_model import FieldPath, Rule, StrictModel, field_error
from fairlead.api.value_types import ServedName, ShortName, list_map_schema
from fairlead.routes.model import Fallback, Route, RouteRule, RouteTarget, Shadow

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

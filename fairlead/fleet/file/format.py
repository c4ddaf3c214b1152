"""The fleet file: its types, how it is parsed, and how it is written.

Field names in the file are camelCase. Every problem is reported, each with line, field and fix. A
file that is written has one instance per line, and is replaced atomically.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from fairlead import units
from fairlead.adapters.model import DEFAULT_ADAPTER_SLOTS, LoraAdapter
from fairlead.api.price import Price
from fairlead.api.spec.engine import EngineType
from fairlead.api.spec.kv_cache import Transfer
from fairlead.api.spec.profile import Profile
from fairlead.api.spec.route.spec import ModelRouteSpec, check_models
from fairlead.api.spec.routing import Routing
from fairlead.api.strict_model import StrictModel, api_field, field_error
from fairlead.api.value_types import (
    AllowedRoutes,
    Choice,
    ContextLength,
    Cost,
    Duration,
    PositiveDuration,
    RequestField,
    RequestHeader,
    RequestPath,
    ServedName,
    check_percentage,
    unit_check,
)
from fairlead.engine_profile import EngineProfile, builtin_profiles
from fairlead.engines.lora_api import has_lora_api
from fairlead.engines.registry import engine_kinds
from fairlead.errors import BadInput, FileProblem, ManifestError
from fairlead.fleet.client_names import GrantedNames, NameClaim, describe_owner, grant_names, object_claim
from fairlead.fleet.engine_url import endpoint_id, normalize_endpoint_url, normalize_engine_url
from fairlead.fleet.model import (
    EXTERNAL_API,
    KV_TRANSFERS,
    EngineAuth,
    Fleet,
    Instance,
    InstanceState,
    KvPullSource,
    Model,
    ModelRouting,
    RequestPolicy,
    Role,
    SloTargets,
    TokenPrice,
    UnknownFields,
    served_name_override,
)
from fairlead.limits import Limits
from fairlead.manifests.yaml_nodes import YamlNode, format_path, format_value, parse_documents, resolve_scalar
from fairlead.names import DNS_LABEL_PATTERN, normalize_model_name, suggest_fix
from fairlead.routes.model import Fallback, RequestRewrite, Route, RouteRule, RouteTarget
from fairlead.runtime.atomic_write import write_atomic
from fairlead.settings import VARIABLE_PREFIX

_VARIABLE_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_PEER_PATTERN = r"^[^\s:]+:\d{1,5}$|^\[[0-9A-Fa-f:.]+\]:\d{1,5}$"
_TRANSFER_WORDS = {Transfer.NIXL.value: "nixl", Transfer.MOONCAKE.value: "mooncake", EngineType.SGLANG.value: "sglang"}
_ZMQ_PATTERN = r"^(tcp://\S+:\d+|ipc:///.{1,106})$"

_EngineUrl = Annotated[str, AfterValidator(unit_check(normalize_engine_url, normalizes=True))]
_Endpoint = Annotated[str, AfterValidator(unit_check(normalize_endpoint_url, normalizes=True))]

_Path = tuple[str | int, ...]
_Add = Callable[[_Path, str, str], None]
"""Adds a problem: the path of its field, a message and a fix."""

_BARE_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9.-]*")


def _check_name(text: str) -> str:
    try:
        return normalize_model_name(text)
    except BadInput as error:
        raise field_error(error.message, "use a name of 1 to 253 bytes without control characters") from error


def _check_namespace(text: str) -> str:
    if not DNS_LABEL_PATTERN.fullmatch(text):
        raise field_error(
            f"{format_value(text)} is not a namespace", "use lower-case letters, digits and -, at most 63"
        )
    return text


def _check_id(text: str) -> str:
    if not 0 < len(text) <= 253 or not all("!" <= char <= "~" for char in text):
        raise field_error(
            f"{format_value(text)} is not an instance id", "use 1 to 253 visible ASCII characters without spaces"
        )
    return text


def _check_engine(text: str) -> str:
    kinds = (*engine_kinds(), EXTERNAL_API)
    text = next((engine.label for engine in EngineType if engine.value == text), text)
    if text not in kinds:
        raise field_error(
            f"must be one of {', '.join(kinds)}, not {format_value(text)}", "write the type of the engine"
        )
    return text


def _check_transfer(text: str) -> str:
    text = _TRANSFER_WORDS.get(text, text)
    if text not in KV_TRANSFERS:
        raise field_error(
            f"must be one of {', '.join(KV_TRANSFERS)}, not {format_value(text)}",
            "write the KV transfer protocol of the engines",
        )
    return text


_Transfer = Annotated[str, AfterValidator(_check_transfer)]
_Name = Annotated[str, AfterValidator(_check_name)]
_Namespace = Annotated[str, AfterValidator(_check_namespace), Field(examples=["default"])]
_Id = Annotated[str, AfterValidator(_check_id)]


def _expand_preset(value: Any) -> Any:
    return {"preset": value} if isinstance(value, str) else value


def _check_path(text: str) -> str:
    if not text.startswith("/") or not text.isprintable():
        raise field_error(
            f"{format_value(text)} is not an absolute path", "write it from the root, like /etc/fairlead/ca.pem"
        )
    return text


def _check_variable(text: str) -> str:
    if not _VARIABLE_PATTERN.fullmatch(text):
        raise field_error(f"{format_value(text)} is not an environment variable", "write it like ENGINE_TOKEN")
    if text.startswith(VARIABLE_PREFIX):
        raise field_error(
            f"{format_value(text)} is reserved for Fairlead's settings", "put the engine's token into another variable"
        )
    return text


class FileTls(StrictModel):
    """The CA of an engine's certificate."""

    ca_file: Annotated[str, AfterValidator(_check_path), Field(examples=["/etc/fairlead/ca.pem"])]


class FileAuth(StrictModel):
    """The location of the bearer token that an engine expects."""

    token_env: Annotated[str, AfterValidator(_check_variable), Field(examples=["ENGINE_TOKEN"])] | None = None
    token_file: Annotated[str, AfterValidator(_check_path), Field(examples=["/run/secrets/token"])] | None = None

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        if (self.token_env is None) == (self.token_file is None):
            raise field_error("the token must come from exactly one of tokenEnv and tokenFile", "write one of them")
        return self


class FileKvPull(StrictModel):
    """The address and cost of copying cached prefixes out of an instance."""

    address: Annotated[str, Field(pattern=_PEER_PATTERN, examples=["10.0.0.1:5710"])]
    bytes_per_token: Annotated[float, Field(gt=0, le=1e9, examples=["131072"])]
    bytes_per_second: Annotated[float, Field(gt=0, le=1e15, examples=["1.25e9"])]
    latency_seconds: Annotated[float, Field(ge=0, le=60)] = 0.01

    def to_kv_pull(self) -> KvPullSource:
        return KvPullSource(self.address, self.bytes_per_token, self.bytes_per_second, self.latency_seconds)


class FileProfile(Profile):
    """An engine profile as in an AcceleratorClass, with its name. Seconds may be plain numbers."""

    name: Annotated[str | None, Field(min_length=1, max_length=253)] = None

    @model_validator(mode="before")
    @classmethod
    def _accept_numbers(cls, data: Any) -> Any:
        """Returns the fields with plain numbers of seconds as quantities, the form in manifests."""
        if not isinstance(data, dict):
            return data
        return {name: repr(value) if _is_seconds(name, value) else value for name, value in data.items()}


def _is_seconds(name: str, value: Any) -> bool:
    return name.endswith("Seconds") and isinstance(value, float) and 0 <= value < float("inf")


class FileInstance(StrictModel):
    """An engine endpoint."""

    url: Annotated[_Endpoint, Field(examples=["http://127.0.0.1:9001"])]
    id: _Id | None = None
    pool: _Id = "main"
    engine: Annotated[str, AfterValidator(_check_engine), Field(examples=["vllm"])] = "vllm"
    served_model_name: Annotated[ServedName | None, Field(examples=["Qwen/Qwen3-8B"])] = None
    role: Choice[Role] = Role.SERVE
    state: Choice[InstanceState] = InstanceState.READY
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    adapters: list[_Name] = Field(default_factory=list)
    dp_rank: Annotated[int | None, Field(ge=0, le=65_535)] = None
    kv_events: Annotated[str | None, Field(pattern=_ZMQ_PATTERN, examples=["tcp://127.0.0.1:5557"])] = None
    kv_replay: Annotated[str | None, Field(pattern=_ZMQ_PATTERN, examples=["tcp://127.0.0.1:5558"])] = None
    kv_transfer: Annotated[_Transfer | None, Field(examples=["nixl"])] = None
    bootstrap: Annotated[_EngineUrl | None, Field(examples=["http://127.0.0.1:8998"])] = None
    kv_pull: Annotated[
        FileKvPull | None,
        Field(examples=['{address: "10.0.0.1:5710", bytesPerToken: 131072, bytesPerSecond: 1.25e9}']),
    ] = None
    tls: FileTls | None = None
    auth: FileAuth | None = None
    cost_per_hour: Annotated[Cost | None, Field(examples=['"2.50"'])] = None
    profile: Annotated[FileProfile | None, BeforeValidator(_expand_preset), Field(examples=["910b4"])] = None


def _check_target(value: Any) -> Any:
    return units.parse_percentage(check_percentage(value)) if isinstance(value, str) else value


class FileSlo(StrictModel):
    """The SLO of a model, with the field names of a ModelDeployment.

    The earlier form is accepted: `itl` for `tpot`, and a number as `target`.
    """

    target: Annotated[float, BeforeValidator(_check_target), api_field("share of requests", '"95%"', gt=0, le=1)] = 0.95
    ttft: Annotated[PositiveDuration | None, Field(examples=["800ms"])] = None
    ttft_per_kilo_token: Annotated[Duration | None, Field(examples=["120ms"])] = None
    tpot: Annotated[PositiveDuration | None, Field(examples=["40ms"])] = None
    itl: Annotated[PositiveDuration | None, Field(examples=["40ms"])] = None

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if self.ttft_per_kilo_token is not None and self.ttft is None:
            message = "ttftPerKiloToken is added to ttft, which is missing"
            raise field_error(message, "add `ttft: 800ms`", at=("ttftPerKiloToken",))
        if self.tpot is not None and self.itl is not None:
            raise field_error("itl is the earlier name of tpot", "remove itl", at=("itl",))
        return self

    def to_targets(self) -> SloTargets:
        """Returns the latency targets in seconds, as routing uses them."""
        tpot = self.tpot or self.itl
        return SloTargets(
            target=self.target,
            ttft_seconds=None if self.ttft is None else units.parse_duration(self.ttft),
            ttft_per_kilo_token_seconds=units.parse_duration(self.ttft_per_kilo_token or "0s"),
            itl_seconds=None if tpot is None else units.parse_duration(tpot),
        )


class FileAdapter(StrictModel):
    """A LoRA adapter of a model."""

    name: Annotated[ServedName, Field(examples=["sql"])]
    source: Annotated[str, Field(min_length=1, max_length=1024, examples=["/adapters/sql"])]

    def to_adapter(self) -> LoraAdapter:
        return LoraAdapter(self.name, self.source)


class FileModel(StrictModel):
    """A model that clients can request, and its engines."""

    name: Annotated[_Name, Field(examples=["tiny"])]
    namespace: _Namespace = "default"
    slo: Annotated[FileSlo | None, Field(examples=["{ttft: 800ms, tpot: 40ms}"])] = None
    objectives: Annotated[FileSlo | None, Field(examples=["{ttft: 800ms, itl: 40ms}"])] = None
    routing: Routing = Routing()
    served_names: list[ServedName] = Field(default_factory=list, max_length=16, examples=["[Qwen/Qwen3-8B]"])
    served_model_name: Annotated[ServedName | None, Field(examples=["Qwen/Qwen3-8B"])] = None
    context_length: ContextLength = None
    kv_transfer: Annotated[_Transfer | None, Field(examples=["nixl"])] = None
    tls: FileTls | None = None
    auth: FileAuth | None = None
    wakes: bool = False
    unknown_fields: Annotated[Choice[UnknownFields] | None, Field(examples=["Refuse"])] = None
    allowed_fields: list[RequestField] = Field(default_factory=list, max_length=64, examples=["[priority]"])
    allowed_paths: list[RequestPath] = Field(default_factory=list, max_length=64, examples=["[/v1/files]"])
    allowed_headers: list[RequestHeader] = Field(default_factory=list, max_length=32, examples=["[x-experiment]"])
    sets_priority: bool = False
    price: Annotated[Price | None, Field(examples=['{input: "0.40", output: "1.20"}'])] = None
    adapters: list[FileAdapter] = Field(
        default_factory=list, max_length=10_000, examples=["[{name: sql, source: /adapters/sql}]"]
    )
    adapter_slots: Annotated[int, Field(ge=1, le=10_000, examples=["8"])] = DEFAULT_ADAPTER_SLOTS
    allowed_routes: AllowedRoutes = Field(default_factory=list)
    instances: list[FileInstance] = Field(default_factory=list, examples=['[{url: "http://127.0.0.1:9001"}]'])

    @model_validator(mode="after")
    def _check_one_slo(self) -> Self:
        if self.slo is not None and self.objectives is not None:
            raise field_error("objectives is the earlier name of slo", "remove objectives", at=("objectives",))
        return self

    @model_validator(mode="after")
    def _check_one_kind(self) -> Self:
        external = [instance.engine == EXTERNAL_API for instance in self.instances]
        if any(external) and not all(external):
            message = "a model has engines of its own, or an API that others run"
            fix = "make two models, and name one in onFailure of a route"
            raise field_error(message, fix, at=("instances", external.index(True), "engine"))
        return self

    def to_request_policy(self) -> RequestPolicy:
        """Returns the policy on what of a client's request may reach the engines."""
        engines = frozenset(instance.engine for instance in self.instances)
        return RequestPolicy(
            engines,
            self.unknown_fields or UnknownFields.default_of(engines),
            frozenset(self.allowed_fields),
            frozenset(self.allowed_paths),
            frozenset(self.allowed_headers),
            self.sets_priority,
        )

    @property
    def targets(self) -> SloTargets:
        """The latency targets in seconds, from `slo` or its earlier name `objectives`."""
        return (self.slo or self.objectives or FileSlo()).to_targets()


class FileRoute(ModelRouteSpec):
    """A name for clients that stands for models, with the fields of a ModelRoute."""

    name: Annotated[_Name, Field(examples=["assistant"])]
    namespace: _Namespace = "default"

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        check_models(self.to_route(self.namespace, self.name))
        return self


class FileFleet(StrictModel):
    """The content of a fleet file: its models and routes."""

    models: Annotated[list[FileModel], Field(examples=["[{name: tiny, instances: [...]}]"])]
    routes: Annotated[list[FileRoute], Field(examples=["[{name: assistant, targets: [{model: tiny}]}]"])] = Field(
        default_factory=list
    )


def _check_routes(
    routes: Sequence[Route], granted: Mapping[str, GrantedNames], models: Mapping[str, Model], add: _Add
) -> None:
    """Adds the problems of routes: those that are given twice, and names that they do not get.

    Targets are problems that are no models of the file, or that take no routes of the namespace.

    granted: the names of models and routes, by the keys of their claims.
    models: by their keys.
    """
    seen: set[str] = set()
    for number, route in enumerate(routes):
        if route.key in seen:
            add(("routes", number, "name"), f"the route {route.key} is already given", "remove one or rename it")
            continue
        seen.add(route.key)
        for refused in granted[object_claim("route", route.namespace, route.name).key].refused:
            why = "it begins with a namespace that holds models"
            if refused.owner is not None:
                why = f"{describe_owner(refused.owner)} has it"
            field = "name" if refused.name == route.name else "servedNames"
            message = f"clients cannot reach the route by {format_value(refused.name)}: {why}"
            add(("routes", number, field), message, "use another name")
        for path, model in route.model_paths():
            if model not in models:
                fix = suggest_fix(model, models, "name a model of this file as namespace/name")
                add(("routes", number, *path), f"no model of this file is {format_value(model)}", fix)
            elif not models[model].takes_routes_of(route.namespace):
                message = f"{format_value(model)} takes no routes of the namespace {route.namespace}"
                add(("routes", number, *path), message, f"add `allowedRoutes: [{route.namespace}]` to the model")


def _check_adapters(content: FileFleet, add: _Add) -> None:
    """Adds the problems of adapters: names that something else has, and models that hand KV over,
    whose engines serve no adapters.
    """
    owners, namespaces = _owners(content), {model.namespace for model in content.models}
    for number, model in enumerate(content.models):
        if model.adapters and any(instance.role is not Role.SERVE for instance in model.instances):
            message = "a model with Prefill and Decode instances serves no adapters"
            add(("models", number, "adapters"), message, "give the adapters to a model whose instances Serve")
        for index, instance in enumerate(model.instances if model.adapters else ()):
            if not has_lora_api(instance.engine):
                message = f"engines of the type {instance.engine} load no adapters at run time"
                add(("models", number, "instances", index, "engine"), message, "remove the adapters of the model")
        for index, adapter in enumerate(model.adapters):
            path: _Path = ("models", number, "adapters", index, "name")
            name, (first, slash, _) = adapter.name, adapter.name.partition("/")
            if slash and first in namespaces:
                why = "it begins with a namespace that holds models"
                add(path, f"clients cannot reach the adapter by {format_value(name)}: {why}", "use another name")
            elif name in owners:
                add(path, f"{owners[name]} has the name {format_value(name)}", "use another name")
            # Names are of the first who has them, so each later one is a problem.
            owners.setdefault(name, f"an adapter of the model {model.namespace}/{model.name}")


def _owners(content: FileFleet) -> dict[str, str]:
    """Returns who has each name for clients, adapters left out."""
    owners: dict[str, str] = {}
    for model in content.models:
        for name in (model.name, *model.served_names):
            owners.setdefault(name, f"the model {model.namespace}/{model.name}")
    for route in content.routes:
        for name in (route.name, *route.served_names):
            owners.setdefault(name, f"the route {route.namespace}/{route.name}")
    return owners


def parse_fleet_file(text: str, *, file: str, limits: Limits | None = None) -> Fleet:
    """Returns the fleet that `text` describes, as version 1. Raises ManifestError with every
    problem.
    """
    limits = limits or Limits()
    documents = parse_documents(text, file=file, limits=limits)
    if len(documents) != 1:
        message = "the file is empty" if not documents else f"{len(documents)} YAML documents, but a fleet file has one"
        line = documents[1].line if documents else 1
        fix = "begin with `models:`" if not documents else "put all models under one `models:`"
        raise ManifestError((FileProblem(file, line, "(document)", message, fix),))
    node = documents[0]
    try:
        content = FileFleet.model_validate(node.to_python(), by_alias=True, by_name=False)
    except ValidationError as error:
        from fairlead.manifests.validation_messages import validation_problems  # most files are valid

        raise ManifestError(tuple(validation_problems(error, FileFleet, node, file))) from error
    problems: list[FileProblem] = []

    def add(path: _Path, message: str, fix: str) -> None:
        problems.append(FileProblem(file, node.locate(path).line, format_path(path), message, fix))

    _check_duplicates(content, node, add)
    _check_transfers(content, add)
    _check_sizes(content, limits, add)
    if problems:
        raise ManifestError(tuple(problems))
    routes = [item.to_route(item.namespace, item.name) for item in content.routes]
    claims = [NameClaim(item.namespace, item.name, tuple(item.served_names)) for item in content.models]
    route_claims = [
        object_claim("route", item.namespace, item.name, tuple(item.served_names)) for item in content.routes
    ]
    granted = grant_names([*claims, *route_claims], {claim.namespace for claim in claims})
    models = sorted(
        (_to_model(item, granted[claim.key]) for item, claim in zip(content.models, claims, strict=True)),
        key=lambda model: model.key,
    )
    _check_routes(routes, granted, {model.key: model for model in models}, add)
    _check_adapters(content, add)
    if problems:
        raise ManifestError(tuple(problems))
    instances = {f"{item.namespace}/{item.name}": _to_instances(item) for item in content.models}
    return Fleet(
        version=1,
        membership_epoch=1,
        models={model.key: model for model in models},
        instances={model.key: instances[model.key] for model in models},
        routes={route.key: route for route in sorted(routes, key=lambda route: route.key)},
    )


def _to_model(item: FileModel, names: GrantedNames) -> Model:
    return Model(
        item.namespace,
        item.name,
        item.targets,
        item.routing.to_routing(),
        wakes=item.wakes,
        served_names=names.served_names,
        requests=item.to_request_policy(),
        price=item.price.to_token_price() if item.price is not None else None,
        adapters=tuple(adapter.to_adapter() for adapter in item.adapters),
        adapter_slots=item.adapter_slots,
        route_namespaces=frozenset(item.allowed_routes),
        context_length=item.context_length,
    )


def _to_instances(item: FileModel) -> tuple[Instance, ...]:
    values = [
        Instance(
            id=_instance_id(item, one),
            namespace=item.namespace,
            model=item.name,
            pool=one.pool,
            url=one.url,
            engine=one.engine,
            role=one.role,
            state=one.state,
            adapters=frozenset(one.adapters),
            weight=one.weight,
            profile=one.profile.to_engine_profile(one.profile.name or f"{item.name}-{one.pool}")
            if one.profile
            else None,
            dp_rank=one.dp_rank,
            kv_events=one.kv_events,
            kv_replay=one.kv_replay,
            transfer=one.kv_transfer or item.kv_transfer,
            bootstrap=one.bootstrap,
            pull=one.kv_pull.to_kv_pull() if one.kv_pull is not None else None,
            access=_engine_auth(item, one),
            replica_nano_usd_per_hour=None if one.cost_per_hour is None else units.parse_usd(one.cost_per_hour),
            served_name=served_name_override(one.served_model_name or item.served_model_name, item.name),
        )
        for one in item.instances
    ]
    return tuple(sorted(values, key=lambda instance: instance.id))


def _engine_auth(item: FileModel, one: FileInstance) -> EngineAuth:
    """Returns the TLS and token settings of an instance; its model's where it has none."""
    tls, auth = one.tls or item.tls, one.auth or item.auth
    return EngineAuth(
        ca_file=tls.ca_file if tls is not None else None,
        token_env=auth.token_env if auth is not None else None,
        token_file=auth.token_file if auth is not None else None,
    )


def _instance_id(item: FileModel, one: FileInstance) -> str:
    """Returns the given id, else `<host>/<port>/<rank>`, which other lines of the file do not
    affect.

    An API that others run may serve several models, so its id has the model too.
    """
    if one.id is not None:
        return one.id
    owner = f"{item.namespace}/{item.name}" if one.engine == EXTERNAL_API else ""
    return endpoint_id(one.url, owner, one.dp_rank or 0)


def _check_duplicates(content: FileFleet, node: YamlNode, add: _Add) -> None:
    """Adds a problem for each name or id that is given twice.

    Ids are unique in the whole file, because metrics and logs name instances by id.
    """
    seen: dict[str, int] = {}
    taken: dict[str, int] = {}
    for m, model in enumerate(content.models):
        path: _Path = ("models", m, "name")
        key = f"{model.namespace}/{model.name}"
        if key in seen:
            message = f"the model {key} is already given on line {seen[key]}"
            add(path, message, "put the instances of one model together")
        seen.setdefault(key, node.locate(path).line)
        for i, one in enumerate(model.instances):
            path = ("models", m, "instances", i)
            instance_id = _instance_id(model, one)
            if instance_id in taken:
                message = f"the instance {instance_id} is already given on line {taken[instance_id]}"
                add(path, message, "remove one, or give each a different `id:`")
            taken.setdefault(instance_id, node.locate(path).line)


def _check_transfers(content: FileFleet, add: _Add) -> None:
    """Adds a problem for each prefill instance without KV transfer: it would get no request."""
    for m, model in enumerate(content.models):
        for i, one in enumerate(model.instances):
            if one.role is Role.PREFILL and not (one.kv_transfer or model.kv_transfer):
                fix = f"add `kvTransfer: {' | '.join(KV_TRANSFERS)}` to the instance or its model"
                add(("models", m, "instances", i, "role"), "a Prefill instance needs a KV transfer protocol", fix)


def _check_sizes(content: FileFleet, limits: Limits, add: _Add) -> None:
    counts = (
        ("models", len(content.models), limits.models),
        ("instances", sum(len(model.instances) for model in content.models), limits.instances),
        ("routes", len(content.routes), limits.routes),
        ("adapters", sum(len(model.adapters) for model in content.models), limits.adapters),
    )
    for what, count, limit in counts:
        if count > limit:
            add(("models",), f"there are {count:,} {what}; at most {limit:,} are served", "split the fleet")


def format_fleet_file(fleet: Fleet) -> str:
    """Returns the fleet as text of a fleet file, one instance per line, without `signals`."""
    lines = ["models:" if fleet.models else "models: []"]
    for key, model in fleet.models.items():
        fields = _model_fields(model) | {"instances": [_instance_fields(one) for one in fleet.instances.get(key, ())]}
        for number, (name, value) in enumerate(fields.items()):
            start = f"{'    ' if number else '  - '}{name}:"
            is_block = isinstance(value, list) and value and isinstance(value[0], dict)
            lines.append(start if is_block else f"{start} {_format_flow(value)}")
            lines += [f"      - {_format_flow(item)}" for item in value] if is_block else []
    if fleet.routes:
        lines.append("routes:")
        lines += [f"  - {_format_flow(_route_fields(route))}" for route in fleet.routes.values()]
    return "\n".join(lines) + "\n"


def _format_flow(value: Any) -> str:
    """Returns a value on one line. Text is unquoted only if every YAML reader takes it as text."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_format_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_format_flow(item) for item in value) + "]"
    if isinstance(value, str):
        bare = _BARE_TEXT.fullmatch(value) and isinstance(resolve_scalar(value), str)
        return value if bare else '"' + "".join(_escape(char) for char in value) + '"'
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _escape(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return char if char == " " or (char.isprintable() and not char.isspace()) else f"\\U{ord(char):08x}"


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if not (value is None or value is False or value == [])}


def _model_fields(model: Model) -> dict[str, Any]:
    policy, has_adapters = model.requests, bool(model.adapters)
    is_default = policy.unknown_fields is UnknownFields.default_of(policy.engines)
    return _given(
        name=model.name,
        namespace=model.namespace,
        slo=_slo_fields(model.objectives),
        routing=_routing_fields(model.routing),
        servedNames=list(model.served_names),
        contextLength=model.context_length,
        allowedRoutes=sorted(model.route_namespaces),
        wakes=model.wakes,
        unknownFields=None if is_default else policy.unknown_fields.value,
        allowedFields=sorted(policy.allowed_fields),
        allowedPaths=sorted(policy.allowed_paths),
        allowedHeaders=sorted(policy.allowed_headers),
        setsPriority=policy.sets_priority,
        adapterSlots=model.adapter_slots if has_adapters else None,
        adapters=[{"name": one.name, "source": one.source} for one in model.adapters],
        price=None if model.price is None else _price_fields(model.price),
    )


def _routing_fields(routing: ModelRouting) -> dict[str, Any]:
    """Returns the preset, and the fields that differ from what is taken where they are left out."""
    given = {to_camel(item.name): getattr(routing, item.name) for item in fields(routing)}
    usual = {to_camel(item.name): item.default for item in fields(routing)}
    return {name: value for name, value in given.items() if name == "preset" or value != usual[name]}


def _slo_fields(values: SloTargets) -> dict[str, Any]:
    has_ttft = values.ttft_seconds is not None
    seconds = {
        "ttft": values.ttft_seconds,
        "ttftPerKiloToken": (values.ttft_per_kilo_token_seconds or None) if has_ttft else None,
        "tpot": values.itl_seconds,
    }
    durations = {name: units.format_exact_duration(value) for name, value in seconds.items() if value is not None}
    return {"target": values.target, **durations}


def _route_fields(route: Route) -> dict[str, Any]:
    shadow = route.shadow
    return _given(
        name=route.name,
        namespace=route.namespace,
        servedNames=[name for name in route.names if name != route.name],
        targets=_target_fields(route.targets),
        overrides=[_override_fields(override) for override in route.overrides],
        rewrite=_rewrite_fields(route.rewrite),
        onFailure=[_fallback_fields(fallback) for fallback in route.fallbacks],
        shadow=None if shadow is None else {"model": shadow.model, "percent": shadow.percent},
    )


def _override_fields(override: RouteRule) -> dict[str, Any]:
    return _given(
        headers={_format_flow(name): value for name, value in override.headers} or None,
        tenants=sorted(override.tenants),
        minContextTokens=override.min_context_tokens or None,
        targets=_target_fields(override.targets),
        rewrite=_rewrite_fields(override.rewrite),
    )


def _rewrite_fields(rewrite: RequestRewrite | None) -> dict[str, Any] | None:
    return None if rewrite is None else {"defaults": dict(rewrite.defaults), "caps": dict(rewrite.caps)}


def _fallback_fields(fallback: Fallback) -> dict[str, Any]:
    return _given(when=sorted(kind.value for kind in fallback.when), to=fallback.to, after=fallback.after)


def _target_fields(targets: tuple[RouteTarget, ...]) -> list[dict[str, Any]]:
    return [{"model": target.model, "weight": target.weight} for target in targets]


def _price_fields(price: TokenPrice) -> dict[str, str]:
    return {to_camel(item.name): units.format_token_price(getattr(price, item.name)) for item in fields(TokenPrice)}


def _instance_fields(one: Instance) -> dict[str, Any]:
    access, price = one.access, one.replica_nano_usd_per_hour
    pull = {to_camel(item.name): getattr(one.pull, item.name) for item in fields(KvPullSource)} if one.pull else None
    return _given(
        id=one.id,
        url=one.url,
        pool=one.pool,
        engine=one.engine,
        role=one.role.value,
        state=one.state.value,
        weight=one.weight if one.weight != 1.0 else None,
        adapters=sorted(one.adapters),
        servedModelName=one.served_name,
        dpRank=one.dp_rank,
        kvEvents=one.kv_events,
        kvReplay=one.kv_replay,
        kvTransfer=one.transfer,
        bootstrap=one.bootstrap,
        kvPull=pull,
        tls=_given(caFile=access.ca_file) or None,
        auth=_given(tokenEnv=access.token_env, tokenFile=access.token_file) or None,
        costPerHour=None if price is None else units.format_exact_usd(price),
        profile=None if one.profile is None else _profile_value(one.profile),
    )


def _profile_value(profile: EngineProfile) -> str | dict[str, Any]:
    return profile.name if builtin_profiles().get(profile.name) == profile else profile_fields(profile)


def profile_fields(profile: EngineProfile) -> dict[str, Any]:
    return {to_camel(item.name): getattr(profile, item.name) for item in fields(EngineProfile)}


def write_fleet_file(path: Path, fleet: Fleet) -> None:
    write_atomic(path, format_fleet_file(fleet).encode(), mode=0o644)  # contains no secret

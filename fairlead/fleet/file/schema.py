"""The types of a fleet file. Field names in the file are camelCase."""

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

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
from fairlead.engines.registry import engine_kinds
from fairlead.errors import BadInput
from fairlead.fleet.engine_url import normalize_endpoint_url, normalize_engine_url
from fairlead.fleet.model import (
    EXTERNAL_API,
    KV_TRANSFERS,
    InstanceState,
    KvPullSource,
    RequestPolicy,
    Role,
    SloTargets,
    UnknownFields,
)
from fairlead.manifests.yaml_nodes import format_value
from fairlead.names import DNS_LABEL_PATTERN, normalize_model_name
from fairlead.settings import VARIABLE_PREFIX

_VARIABLE_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_PEER_PATTERN = r"^[^\s:]+:\d{1,5}$|^\[[0-9A-Fa-f:.]+\]:\d{1,5}$"
_TRANSFER_WORDS = {Transfer.NIXL.value: "nixl", Transfer.MOONCAKE.value: "mooncake", EngineType.SGLANG.value: "sglang"}
_ZMQ_PATTERN = r"^tcp://\S+:\d+$"


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
_EngineUrl = Annotated[str, AfterValidator(unit_check(normalize_engine_url, normalizes=True))]
_Endpoint = Annotated[str, AfterValidator(unit_check(normalize_endpoint_url, normalizes=True))]
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
        """Returns the `KvPullSource` of an instance with these values."""
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
        """Returns the adapter as gateways use it."""
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

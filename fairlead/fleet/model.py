"""The fleet: an immutable snapshot of everything routable, replaced as a whole on every change.

The data plane uses only this value; it never queries the API server or a file. A `FleetSource`
produces snapshots: from a file, which the local supervisor writes, or from a watched cluster.

- `version` counts snapshots.
- `membership_epoch` counts changes of the set of instances that homes are computed from. Processes
  with the same epoch compute the same homes.
"""

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, Protocol

from fairlead.adapters.model import DEFAULT_ADAPTER_SLOTS, LoraAdapter
from fairlead.engine_profile import EngineProfile
from fairlead.fleet.labels import CANARY_POOL_SUFFIX
from fairlead.fleet.signals import EngineSignals
from fairlead.names import ALL_NAMESPACES
from fairlead.routes.model import Route

EXTERNAL_API = "openai"
"""The kind of engine of an OpenAI-compatible API that others run."""

KV_TRANSFERS = ("nixl", "mooncake", "sglang")
"""The KV transfer protocols that the gateway supports."""

MAX_REQUEST_COST: Final = 10**14
"""100,000 US dollars. An engine that reports impossible counts at an impossible price cannot make
sums overflow that belong to all tenants.
"""


class Role(StrEnum):
    """The part of serving that an instance performs."""

    SERVE = "Serve"
    PREFILL = "Prefill"
    DECODE = "Decode"


class InstanceState(StrEnum):
    """The life-cycle state of an instance. Only READY instances receive requests."""

    STARTING = "Starting"
    READY = "Ready"
    DRAINING = "Draining"
    SLEEPING = "Sleeping"


class RoutingPreset(StrEnum):
    """The routing presets: rules that distribute the requests of a model over its instances.

    API, gateway, seams and benchmarks all use this list. `fairlead_gateway.routing` implements the
    presets, and docs/concepts/routing.md describes them.
    """

    DUAL_HASH = "dual-hash"
    DUALMAP = "dualmap"
    ROUND_ROBIN = "round-robin"
    LEAST_REQUEST = "least-request"
    SESSION = "session"
    POWER_OF_TWO = "power-of-two"
    CHWBL = "chwbl"
    PREFIX_CACHE = "prefix-cache"
    CACHE_AWARE = "cache-aware"
    LLM_D = "llm-d"
    LMETRIC = "lmetric"
    MIN_TTFT = "min-ttft"
    PREBLE = "preble"


class StreamResume(StrEnum):
    """The way of a stream whose engine ends: on at another engine, or to its end."""

    AUTO = "Auto"
    NEVER = "Never"


@dataclass(frozen=True, slots=True)
class SloTargets:
    """The SLO of a model: its latency targets. None means no such target.

    target: share of requests (0..1) that should meet all latency targets.
    itl_seconds: the TPOT target, the mean gap between the tokens of one answer.
    period_seconds: time over which the target holds. Only the autoscaler uses it.
    """

    target: float = 0.95
    ttft_seconds: float | None = None
    ttft_per_kilo_token_seconds: float = 0.0
    itl_seconds: float | None = None
    period_seconds: float = 86_400.0

    def ttft_limit_seconds(self, prompt_tokens: float) -> float | None:
        """Returns the TTFT target for a prompt of this length; None if there is none."""
        if self.ttft_seconds is None:
            return None
        return self.ttft_seconds + self.ttft_per_kilo_token_seconds * prompt_tokens / 1000.0


@dataclass(frozen=True, slots=True)
class EngineAuth:
    """The location of the secrets for connecting to an engine: CA file and bearer token."""

    ca_file: str | None = None
    token_env: str | None = None
    token_file: str | None = None

    @property
    def has_token(self) -> bool:
        """True if the engine expects a bearer token."""
        return self.token_env is not None or self.token_file is not None


@dataclass(frozen=True, slots=True)
class KvPullSource:
    """The address and cost of copying blocks out of an instance's cache.

    address: `HOST:PORT` of the instance's peer-to-peer tier.
    bytes_per_second: bandwidth between two instances.
    latency_seconds: time to the first byte.
    """

    address: str
    bytes_per_token: float
    bytes_per_second: float
    latency_seconds: float = 0.0

    def transfer_seconds(self, tokens: float) -> float:
        """Returns the seconds to copy this many tokens."""
        return self.latency_seconds + tokens * self.bytes_per_token / self.bytes_per_second


@dataclass(frozen=True, slots=True)
class Instance:
    """A routable engine endpoint.

    id: `<pod-uid>/<port>/<rank>`; locally `<pool>-<n>/<port>/<rank>`.
    signals: None until the engine has reported metrics.
    received_at: monotonic seconds of the receiver when `signals` arrived.
    dp_rank: None for an engine without data parallelism.
    kv_events, kv_replay: ZMQ endpoints.
    transfer: KV transfer protocol from prefill to decode instances, one of `KV_TRANSFERS`.
    bootstrap: bootstrap URL of Mooncake and SGLang. None for the default port of the same host.
    served_name: the engine's name for the model. None if it is the model's own name.
    pull: how other instances copy KV from this one. The instance itself copies from others, too.
    checks_address: a Kubernetes object names the endpoint, so each connection checks its address.
    replica_nano_usd_per_hour: price of its whole replica, which may have other ranks; None if the
        price is not known.
    """

    id: str
    namespace: str
    model: str
    pool: str
    url: str
    engine: str = "vllm"
    role: Role = Role.SERVE
    state: InstanceState = InstanceState.READY
    adapters: frozenset[str] = frozenset()
    weight: float = 1.0
    profile: EngineProfile | None = None
    signals: EngineSignals | None = None
    received_at: float | None = None
    dp_rank: int | None = None
    kv_events: str | None = None
    kv_replay: str | None = None
    transfer: str | None = None
    bootstrap: str | None = None
    access: EngineAuth = EngineAuth()
    served_name: str | None = None
    pull: KvPullSource | None = None
    checks_address: bool = False
    replica_nano_usd_per_hour: int | None = None

    @property
    def leaves_cluster(self) -> bool:
        """True if it is an OpenAI-compatible API that others run."""
        return self.engine == EXTERNAL_API

    @property
    def address(self) -> str:
        """The key of its connections: the URL, for endpoints followed by the model.

        Why: models of several tenants may have one URL, and different tokens.
        """
        if self.checks_address or self.leaves_cluster:
            return f"{self.url}#{self.namespace}/{self.model}"
        return self.url

    @property
    def is_canary(self) -> bool:
        """True if it belongs to the canary of a rollout."""
        return self.pool.endswith(CANARY_POOL_SUFFIX)

    @property
    def replica_id(self) -> str:
        return self.id if self.dp_rank is None else self.id.rpartition("/")[0] or self.id


def served_name_override(name: str | None, model: str) -> str | None:
    """Returns the `served_name` for an instance of `model`: None if the engine uses the model's
    name.
    """
    return None if name == model else name


class UnknownFields(StrEnum):
    """The treatment of body fields that the engines of a model do not know."""

    PASS = "Pass"
    REFUSE = "Refuse"

    @classmethod
    def default_of(cls, engines: frozenset[str]) -> "UnknownFields":
        return cls.REFUSE if EXTERNAL_API in engines else cls.PASS


@dataclass(frozen=True, slots=True)
class RequestPolicy:
    """The policy on what of a client's request may reach the engines of a model.

    engines: the types of its engines; empty if not known. They follow from the instances, so
        policies that differ only here are equal.
    allowed_fields: body fields that clients may set although engines treat them specially.
    allowed_paths: further paths under `/v1`; a final `/*` stands for all paths below.
    allowed_headers: further headers of clients that engines get, in lower case.
    sets_priority: the engines start requests by their field `priority`, so gateways set it.
    """

    engines: frozenset[str] = field(default=frozenset(), compare=False)
    unknown_fields: UnknownFields = UnknownFields.PASS
    allowed_fields: frozenset[str] = frozenset()
    allowed_paths: frozenset[str] = frozenset()
    allowed_headers: frozenset[str] = frozenset()
    sets_priority: bool = False


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """The price of one token of a model, in billionths of a US dollar.

    cached_input: of a prompt's tokens that the engine had in its KV cache.
    """

    input: int
    cached_input: int
    output: int

    def cost(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """Returns the cost of a request. `cached_tokens` are a part of `input_tokens`."""
        uncached = (input_tokens - cached_tokens) * self.input
        return min(MAX_REQUEST_COST, uncached + cached_tokens * self.cached_input + output_tokens * self.output)

    def saved(self, cached_tokens: int) -> int:
        """Returns how much more the request would have cost without its cached tokens."""
        return min(MAX_REQUEST_COST, cached_tokens * (self.input - self.cached_input))


@dataclass(frozen=True, slots=True)
class ModelRouting:
    """The routing of a model: `spec.routing` with the values that are left out.

    max_attempts: instances tried for one request; None for the gateway's own number.
    resume: whether its streams go on at another instance when theirs ends.
    """

    preset: str = RoutingPreset.DUAL_HASH.value
    max_attempts: int | None = None
    resume: StreamResume = StreamResume.AUTO


@dataclass(frozen=True, slots=True)
class Model:
    """A model that clients can request: its SLO and routing.

    shadowed: a model in another namespace has the bare name; clients must use `namespace/name`.
    wakes: the model may have no instance, and gets one when a request is queued.
    served_names: further names by which clients reach the model.
    price: None if the model has no price. Its use is recorded then without a cost.
    adapters: LoRA adapters that clients can request by their own names.
    adapter_slots: adapters that each of its engines holds at a time.
    canary_weight: percentage of the conversations that canary instances get.
    adapters_only: clients may name its adapters, and not the model itself.
    route_namespaces: those whose routes may lead to it, besides its own; `*` stands for all.
    context_length: in tokens, as its operator states it; None if its engines are asked.
    """

    namespace: str
    name: str
    objectives: SloTargets = field(default_factory=SloTargets)
    routing: ModelRouting = ModelRouting()
    shadowed: bool = False
    wakes: bool = False
    served_names: tuple[str, ...] = ()
    requests: RequestPolicy = RequestPolicy()
    price: TokenPrice | None = None
    adapters: tuple[LoraAdapter, ...] = ()
    adapter_slots: int = DEFAULT_ADAPTER_SLOTS
    canary_weight: int = 0
    adapters_only: bool = False
    route_namespaces: frozenset[str] = frozenset()
    context_length: int | None = None

    def takes_routes_of(self, namespace: str) -> bool:
        """Returns True if a route of the namespace may lead to the model."""
        return takes_routes(self.namespace, self.route_namespaces, namespace)

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def leaves_cluster(self) -> bool:
        """True if its requests may go to an OpenAI-compatible API that others run."""
        return EXTERNAL_API in self.requests.engines

    def has_client_name(self, name: str) -> bool:
        """Returns True if clients reach the model by this name. The key does not count."""
        if self.adapters_only:
            return False
        return (self.name == name and not self.shadowed) or name in self.served_names


def takes_routes(namespace: str, allowed: Collection[str], route_namespace: str) -> bool:
    """Returns True if a model of `namespace` may be the target of a route of another one.

    allowed: `spec.allowedRoutes` of the model.
    """
    return route_namespace == namespace or route_namespace in allowed or ALL_NAMESPACES in allowed


@dataclass(frozen=True, slots=True)
class Fleet:
    """A snapshot of the fleet.

    models: by `namespace/name`.
    instances: by the same key, sorted by id.
    service_addresses: of Services that lead to pods of models. No endpoint may have one; empty if
        there are no endpoints whose address is checked.
    routes: by `namespace/name`.
    """

    version: int = 0
    membership_epoch: int = 0
    models: Mapping[str, Model] = field(default_factory=dict)
    instances: Mapping[str, tuple[Instance, ...]] = field(default_factory=dict)
    service_addresses: frozenset[str] = frozenset()
    routes: Mapping[str, Route] = field(default_factory=dict)

    def resolve_model(self, name: str) -> str | None:
        """Returns the key of the model that a client requests by `name`; None if there is none.

        `namespace/name` always works; another name works if exactly one model has it.
        """
        if self._has_model_for_clients(name):
            return name
        keys = [key for key, model in self.models.items() if model.has_client_name(name)]
        return keys[0] if len(keys) == 1 else None

    def resolve_route(self, name: str) -> str | None:
        """Returns the key of the route that a client requests by `name`; None if there is none.

        A model with this key comes before the route.
        """
        if self._has_model_for_clients(name):
            return None
        return next((key for key, route in self.routes.items() if name == key or name in route.names), None)

    def _has_model_for_clients(self, key: str) -> bool:
        model = self.models.get(key)
        return model is not None and not model.adapters_only


def next_fleet(
    previous: Fleet | None,
    models: Mapping[str, Model],
    instances: Mapping[str, tuple[Instance, ...]],
    service_addresses: frozenset[str] = frozenset(),
    routes: Mapping[str, Route] | None = None,
) -> Fleet:
    """Returns the snapshot after `previous`; `previous` itself if nothing changed."""
    routes = routes or {}
    if previous is None:
        return Fleet(1, 1, models, instances, service_addresses, routes)
    before = previous.models, previous.instances, previous.service_addresses, previous.routes
    if (models, instances, service_addresses, routes) == before:
        return previous
    fleet = Fleet(previous.version + 1, previous.membership_epoch, models, instances, service_addresses, routes)
    if _member_ids(fleet) != _member_ids(previous):
        fleet = replace(fleet, membership_epoch=previous.membership_epoch + 1)
    return fleet


def _member_ids(fleet: Fleet) -> frozenset[tuple[str, str]]:
    """Returns (model key, instance id) of each READY instance; homes are computed from these."""
    return frozenset(
        (key, instance.id)
        for key, instances in fleet.instances.items()
        for instance in instances
        if instance.state is InstanceState.READY
    )


class FleetSource(Protocol):
    """A producer of fleet snapshots. Local mode and clusters differ only in this and in
    `ReplicaScaler`.
    """

    def watch(self) -> AsyncIterator[Fleet]:
        """Yields the current snapshot, then a new one after every change."""

    def warnings(self) -> list[str]:
        """Returns current problems as text for people; empty if the last snapshot is up to date."""

    def age_seconds(self) -> float | None:
        """Returns the age of the last contact with the source; None if it does not apply or is
        unknown.
        """

"""The fleet: an immutable snapshot of everything routable, replaced whole whenever something changes.

The data plane works from this value alone; it never asks the API server or a file. Producers are FleetSources (a
file, which the local supervisor writes, or the watch of a cluster); ``version`` counts snapshots, ``membership_epoch`` counts
changes of the set of instances that homes are computed over, so that everyone who has seen the same epoch computes
the same homes.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.signals import EngineSignals


class Role(StrEnum):
    """What an instance does for a request."""

    SERVE = "Serve"
    PREFILL = "Prefill"
    DECODE = "Decode"


class InstanceState(StrEnum):
    """Where an instance is in its life; only READY receives requests."""

    STARTING = "Starting"
    READY = "Ready"
    DRAINING = "Draining"
    SLEEPING = "Sleeping"


class RoutingPreset(StrEnum):
    """How the requests of a model are spread over its instances. This is the one list of presets; API, gateway, seams and
    benchmarks take theirs from it. What each does is in ``fairlead_gateway.routing`` and docs/guides/routing.md."""

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


KV_TRANSFERS = ("nixl", "mooncake", "sglang")
"""The ways in which engines hand over KV that the gateway knows."""


@dataclass(frozen=True, slots=True)
class SloTargets:
    """What a request should see; None = no such objective. ``target`` is the share of requests (0..1)."""

    target: float = 0.95
    ttft_seconds: float | None = None
    ttft_per_kilo_token_seconds: float = 0.0
    itl_seconds: float | None = None

    def ttft_limit_seconds(self, prompt_tokens: float) -> float | None:
        """The first-token objective of a prompt of that length, in seconds; None when there is none."""
        if self.ttft_seconds is None:
            return None
        return self.ttft_seconds + self.ttft_per_kilo_token_seconds * prompt_tokens / 1000.0


@dataclass(frozen=True, slots=True)
class EngineAuth:
    """Where the secrets lie that reaching an engine takes: whose certificates it shows, and what holds its bearer token."""

    ca_file: str | None = None
    token_env: str | None = None
    token_file: str | None = None

    @property
    def has_token(self) -> bool:
        """The engine is to be shown a token."""
        return self.token_env is not None or self.token_file is not None


@dataclass(frozen=True, slots=True)
class KvPull:
    """Where other instances get blocks from this one's cache (``HOST:PORT`` of its peer-to-peer tier), and what that takes: bytes of
    a token, bytes a second between two instances, and seconds before the first."""

    address: str
    bytes_per_token: float
    bytes_per_second: float
    latency_seconds: float = 0.0

    def transfer_seconds(self, tokens: float) -> float:
        """How long so many tokens travel."""
        return self.latency_seconds + tokens * self.bytes_per_token / self.bytes_per_second


@dataclass(frozen=True, slots=True)
class Instance:
    """One routable engine endpoint; ``id`` is ``<pod-uid>/<port>/<rank>`` (locally ``<pool>-<n>/<port>/<rank>``).

    ``signals`` is None until the engine has said something; ``received_at`` is then the receiver's monotonic time.
    ``dp_rank`` is None for an engine without data parallelism; ``kv_events`` and ``kv_replay`` are ZMQ endpoints.
    ``transfer`` is how KV goes from a prefill to a decode instance (``TRANSFERS``); ``bootstrap`` the URL where Mooncake's
    and SGLang's engines meet, None for the engines' usual port on the same host. ``served_name`` is what its engine calls the
    model, None where that is the model's name. ``pull``: others may get what it holds, and it gets what they hold.
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
    pull: KvPull | None = None


def served_name_override(name: str | None, model: str) -> str | None:
    """The ``served_name`` of an instance of ``model`` whose engine calls it ``name``. None: the model's own."""
    return None if name == model else name


@dataclass(frozen=True, slots=True)
class Model:
    """A client-visible model: its objectives and how its requests are routed.

    ``shadowed``: a model of another namespace has the bare name, and clients call this one by ``namespace/name``. ``wakes``: it may
    have no instance at all, and gets one when a request waits for it.
    """

    namespace: str
    name: str
    objectives: SloTargets = field(default_factory=SloTargets)
    preset: str = RoutingPreset.DUAL_HASH.value
    shadowed: bool = False
    wakes: bool = False

    @property
    def key(self) -> str:
        """``namespace/name``: the identity used in every map, metric and Redis key."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Fleet:
    """``models`` by ``namespace/name``; ``instances`` by the same key, in a stable order (sorted by id)."""

    version: int = 0
    membership_epoch: int = 0
    models: Mapping[str, Model] = field(default_factory=dict)
    instances: Mapping[str, tuple[Instance, ...]] = field(default_factory=dict)

    def resolve_model(self, name: str) -> str | None:
        """A client's model name → key. ``namespace/name`` always works, a bare name when it is unique."""
        if name in self.models:
            return name
        keys = [key for key, model in self.models.items() if model.name == name and not model.shadowed]
        return keys[0] if len(keys) == 1 else None


class FleetSource(Protocol):
    """Where snapshots come from; the only thing that differs between local mode and a cluster."""

    def watch(self) -> AsyncIterator[Fleet]:
        """Yield the present snapshot, then a new one after every change."""
        ...

    def warnings(self) -> list[str]:
        """What is wrong with it now, in words for people; empty when the last snapshot is how things are."""
        ...

    def age_seconds(self) -> float | None:
        """How long ago it was last known how things are; None where that cannot be told."""
        ...

"""All messages between supervisor and workers: those of the processes, and the unions of all.

Messages of a feature are in `messages` of its folder. Times are monotonic seconds of the machine's
clock unless their name says `wall`. Decisions go from workers to their supervisor and to Redis.
"""

from typing import Final, TypeAlias

import msgspec

from fairlead.fleet.model import Fleet
from fairlead.tenants.model import Tenant
from fairlead_gateway.bearer_tokens.messages import TokenIssuer, TokenIssuerUpdate
from fairlead_gateway.idempotency.messages import GatewayList
from fairlead_gateway.kv_index.messages import (
    IndexCorrections,
    IndexedModels,
    PromptFinished,
    PromptSamples,
    SampleRequest,
)
from fairlead_gateway.limits.messages import QuotaReport, QuotaUpdates
from fairlead_gateway.peers.messages import Dispatch, PeerUpdates
from fairlead_gateway.profiles.messages import ProfileUpdate, TimingEvent
from fairlead_gateway.telemetry.snapshot import ModelSnapshot
from fairlead_gateway.tenants.messages import AccessReport, KeyUpdate, RevocationUpdate, TenantUpdate
from fairlead_gateway.usage.messages import UsageRow

WORKER_QUERY_SECONDS: Final = 2.0
"""Limit: a worker's reply to a query; then it is shown as unresponsive."""
SHARED_SLOTS: Final = 8_192
"""Limit: instances whose load workers share; of others each worker sees its own load."""
DRAIN_END_SECONDS: Final = 5.0
"""Limit: from the end of a drain, when the rest is answered with an error, until connections are
reset.
"""
WAKE_HINT_SECONDS: Final = 2.0
"""Limit: interval of wake hints to the autoscaler while requests wait for a first instance."""
PUBLISHED_DECISIONS_PENDING: Final = 4_096
"""Limit: decisions buffered while Redis is away; the oldest are dropped."""


class LoggedDecision(msgspec.Struct, array_like=True):
    """The decisions of one request, as the management API shows them.

    wall, latest_wall: Unix seconds of the first decision and of the latest.
    chosen, route: the instance and the route of the latest decision.
    json: `DecisionOut` of the management API.
    waited_seconds: until the first token of a stream, or the end of another answer.
    """

    request_id: str
    wall: float
    latest_wall: float
    caller: str | None
    chosen: str | None
    route: str | None
    json: bytes
    waited_seconds: float


# --- supervisor → worker


class Configure(msgspec.Struct, tag=True):
    """Supervisor → worker: the first message, with what the worker serves.

    - keys: those of the keys file, names by digest; None if no API key is required.
    - tenants, revoked: as `TenantUpdate` and `RevocationUpdate` send them later.
    - token_issuers: None if no bearer tokens are accepted.
    - are_keys_loaded: False while a source of keys has not been valid once.
    - row, active_rows: rows of the shared load table: its own, and the others in use.
    - has_redis: decisions and loads go to Redis.
    - has_ledger: the use of requests is reported.
    - indexed_models: as `IndexedModels` sends them later.
    - sibling_ports: of all workers by their numbers, for requests of each other; empty for one.
    - gateways: as a later `GatewayList`; None if idempotency keys stay within this gateway.
    """

    number: int
    gateway_id: str
    host: str
    port: int
    secret: bytes
    pepper: bytes | None
    keys: dict[bytes, str] | None
    tenants: list[Tenant]
    revoked: list[bytes]
    token_issuers: list[TokenIssuer] | None
    are_keys_loaded: bool
    certificate: tuple[str, str] | None
    fleet: Fleet
    slots: dict[str, int]
    row: int
    active_rows: list[int]
    has_redis: bool
    indexed_models: list[str]
    has_ledger: bool
    warnings: list[str]
    sibling_ports: list[int] = []
    gateways: GatewayList | None = None


class FleetUpdate(msgspec.Struct, tag=True):
    """Supervisor → worker: the fleet that replaces the last one, and the slots of its instances."""

    fleet: Fleet
    slots: dict[str, int]


class ReloadCertificate(msgspec.Struct, tag=True):
    """Supervisor → worker: load the certificate's files again; they changed and match."""


class ActiveRows(msgspec.Struct, tag=True):
    """Supervisor → worker: the load table's rows of sibling workers and of other gateways."""

    rows: list[int]


class WarningsUpdate(msgspec.Struct, tag=True):
    """Supervisor → worker: warnings of the supervisor's own parts, as text."""

    warnings: list[str]


class StartDrain(msgspec.Struct, tag=True):
    """Supervisor → worker: accept nothing new, finish what is in flight, exit."""


class EndDrain(msgspec.Struct, tag=True):
    """Supervisor → worker: end the drain now; requests in flight get an error."""


class GetState(msgspec.Struct, tag=True):
    """Query for a worker's state. The reply is one `WorkerState`."""

    query_id: int


class GetCounters(msgspec.Struct, tag=True):
    """Query for a worker's counters. The reply is one `ModelSnapshot` per model.

    windows: whether the snapshots include the last minute.
    """

    query_id: int
    now: float
    windows: bool


class GetDecisions(msgspec.Struct, tag=True):
    """Query for requests. The reply is lists of `LoggedDecision`.

    callers: only requests of these tenants; None: of all.
    kind: of `DecisionLog.latest`.
    """

    query_id: int
    limit: int
    model: str | None
    callers: frozenset[str] | None = None
    kind: str = "latest"


class GetDecision(msgspec.Struct, tag=True):
    """Query for one request of `callers`. The reply lists one `LoggedDecision` a tenant."""

    query_id: int
    request_id: str
    callers: frozenset[str] | None = None


class PreviewRoute(msgspec.Struct, tag=True):
    """Query for the instance that a request would be sent to. The reply is one `RoutePreview`.

    tenant: the caller; None for one that belongs to no tenant.
    headers: of the request, with names in lower case.
    """

    query_id: int
    path: str
    body: bytes
    session: str | None
    tenant: str | None = None
    headers: list[tuple[str, str]] = []


ToWorker: TypeAlias = (
    Configure
    | FleetUpdate
    | IndexedModels
    | KeyUpdate
    | TenantUpdate
    | RevocationUpdate
    | TokenIssuerUpdate
    | ReloadCertificate
    | ActiveRows
    | WarningsUpdate
    | PeerUpdates
    | IndexCorrections
    | SampleRequest
    | ProfileUpdate
    | QuotaUpdates
    | GatewayList
    | StartDrain
    | EndDrain
    | GetState
    | GetCounters
    | GetDecisions
    | GetDecision
    | PreviewRoute
)
Query: TypeAlias = GetState | GetCounters | GetDecisions | GetDecision | PreviewRoute

# --- worker → supervisor


class WorkerReady(msgspec.Struct, tag=True):
    """Worker → supervisor: it listens, with the fleet of this version."""

    version: int


class StartFailed(msgspec.Struct, tag=True):
    """Worker → supervisor: it could not start and exits."""

    message: str


class FleetApplied(msgspec.Struct, tag=True):
    """Worker → supervisor: nothing is routed by a fleet older than this version any more.

    error: why this version was not applied; None if it was. With an error, an older fleet stays in
        use.
    """

    version: int
    error: str | None = None


class DrainRequested(msgspec.Struct, tag=True):
    """Worker → supervisor: it got a signal to exit, and is to be drained once it is replaced."""


class FinalCounters(msgspec.Struct, tag=True):
    """Worker → supervisor: its counters as it exits."""

    models: list[ModelSnapshot]
    non_model_counters: dict[str, int]


class WorkerReport(msgspec.Struct, tag=True, omit_defaults=True):
    """Worker → supervisor: what its journal has noted since the last report.

    - dispatches, crashes, cleared, service: as in `PeerUpdates`, for sibling workers and peers.
    - dispatches, prompt_ends: for the KV-cache index; timings: for engine profiles; usage: for the
      ledger.
    - decisions, loads: for Redis. `decisions` are models and entries of their streams. `loads` is
      None if unchanged.
    - lost_usage, dropped_decisions: numbers of rows that did not fit.
    """

    dispatches: list[Dispatch] = []
    prompt_ends: list[PromptFinished] = []
    timings: list[TimingEvent] = []
    usage: list[UsageRow] = []
    decisions: list[tuple[str, bytes]] = []
    crashes: list[tuple[bytes, str, float, float]] = []
    cleared: list[tuple[bytes, float]] = []
    service: dict[str, dict[str, float]] = {}
    loads: dict[str, "EncodedLoad"] | None = None
    lost_usage: int = 0
    dropped_decisions: int = 0


class NeedsInstance(msgspec.Struct, tag=True):
    """Worker → supervisor: requests of a model wait for a first instance."""

    model: str


class ReplyChunk(msgspec.Struct, tag=True):
    """Worker → supervisor: a part of an encoded reply.

    has_failed: an error of the worker ends the reply, so all of it is invalid.
    """

    query_id: int
    data: bytes
    last: bool
    has_failed: bool = False


FromWorker: TypeAlias = (
    WorkerReady
    | StartFailed
    | FleetApplied
    | DrainRequested
    | FinalCounters
    | WorkerReport
    | PromptSamples
    | QuotaReport
    | NeedsInstance
    | AccessReport
    | ReplyChunk
)

# --- values of messages


class EncodedLoad(msgspec.Struct, array_like=True, frozen=True):
    """A worker's own load on one instance, as `routing.InstanceLoad`."""

    inflight: int
    waiting: int
    backlog_seconds: float
    inflight_tokens: float
    queued: int


class EncodedEjection(msgspec.Struct, array_like=True, frozen=True):
    """A worker's own `EjectionRecord` of one instance."""

    since: float
    cause: str
    failed_probes: int


class WorkerState(msgspec.Struct, array_like=True):
    """The state of a worker.

    - health_states: health states that are not simply healthy, as (state, reason).
    - ejections: instances that have not answered since they were ejected.
    - answer_times: when each instance answered this worker last.
    - loop_lag: pairs of a quantile and the lag of the event loop in seconds.
    - queued: queued requests by model.
    - adapters: LoRA adapters that engines hold, as far as the worker knows, by instance.
    """

    ready: bool
    warnings: list[str]
    loads: dict[str, EncodedLoad]
    health_states: dict[str, tuple[str, str]]
    loop_lag: list[tuple[float, float]]
    non_model_counters: dict[str, int]
    in_flight: int
    queued: dict[str, int]
    ejections: dict[str, EncodedEjection]
    answer_times: dict[str, float]
    adapters: dict[str, list[str]] = {}


class RoutePreview(msgspec.Struct):
    """The reply to `PreviewRoute`.

    rejection: (status, message, param, code) of the response that the request would get instead.
    """

    preview: LoggedDecision | None
    rejection: tuple[int, str, str | None, str | None] | None = None

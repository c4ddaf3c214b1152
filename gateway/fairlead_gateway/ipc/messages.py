"""All messages between supervisor and workers.

Times are monotonic seconds of the machine's clock unless their name says `wall`.

Messages about who may call: issuers of bearer tokens with their public keys, and what workers
report of keys.

Messages between supervisor and workers about tenants' limits.

Counters only grow, and grants are absolute. So a dropped message costs nothing once the next one
has arrived. Times are monotonic seconds of the machine's clock.

The use of requests, from which the supervisor makes usage records.

Timing events of requests, from which the supervisor learns engine profiles.

Decisions, as they go from workers to their supervisor and to Redis.
"""

from enum import IntEnum
from typing import Final, TypeAlias

import msgspec

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Fleet
from fairlead.tenants.model import Tenant
from fairlead_gateway.kv_index.cache_correction import CacheCorrection
from fairlead_gateway.limits.exchange import GrantUpdate, Need, Row
from fairlead_gateway.telemetry.snapshot import ModelSnapshot

JWKS_UNKNOWN_KEY_SECONDS: Final = 10.0
"""Limit: shortest interval at which a token with an unknown key makes the gateway read the key set.
"""
BEARER_TOKEN_BYTES: Final = 16_384
"""Limit: a bearer token; those of Kubernetes have about 1 kB."""
WORKER_QUERY_SECONDS: Final = 2.0
"""Limit: a worker's reply to a query; then it is shown as unresponsive."""
SHARED_SLOTS: Final = 8_192
"""Limit: instances whose load workers share; of others each worker sees its own load."""
PREFIX_MAP_CORRECTION_SECONDS: Final = 0.05
"""Limit: corrections are batched this long for the workers."""
DRAIN_END_SECONDS: Final = 5.0
"""Limit: from the end of a drain, when the rest is answered with an error, until connections are
reset.
"""
WAKE_HINT_SECONDS: Final = 2.0
"""Limit: interval of wake hints to the autoscaler while requests wait for a first instance."""
PUBLISHED_DECISIONS_PENDING: Final = 4_096
"""Limit: decisions buffered while Redis is away; the oldest are dropped."""
TIMING_REPORT_SECONDS: Final = 1.0
"""Limit: interval of a worker's reports of timings."""


class LoggedDecision(msgspec.Struct, array_like=True):
    """The decisions of one request, as the management API shows them.

    wall, latest_wall: Unix seconds of the first decision and of the latest.
    chosen, route: the instance and the route of the latest decision.
    json: `DecisionOut` of the management API.
    """

    request_id: str
    wall: float
    latest_wall: float
    caller: str | None
    chosen: str | None
    route: str | None
    json: bytes


class TimingEventKind(IntEnum):
    """The kind of a timing event.

    UNMEASURED: a complete response whose tokens say nothing of the time of a step.
    """

    DISPATCHED = 0
    FIRST_TOKEN = 1
    FINISHED = 2
    ABANDONED = 3
    UNMEASURED = 4


class TimingEvent(msgspec.Struct, array_like=True, gc=False):
    """One event in the life of a request.

    - at: monotonic seconds.
    - request, instance: ids; `instance` is empty unless DISPATCHED.
    - tokens, cached: of the prompt, as expected (DISPATCHED) or as reported (FINISHED); negative
      if not reported.
    - output: generated tokens (FINISHED); negative if unknown.
    - loaded: those of `cached` that are loaded from CPU memory, disk and shared store (DISPATCHED);
      None: none.
    """

    kind: int
    at: float
    request: str
    instance: str = ""
    tokens: float = 0.0
    cached: float = -1.0
    output: float = -1.0
    loaded: tuple[float, float, float] | None = None


class UsageRow(msgspec.Struct, array_like=True, gc=False):
    """The use of one request that was sent to an instance or was about to be.

    - ended_wall: Unix seconds of the end.
    - tenant, key: empty for a gateway without API keys.
    - prefill_instance: where another instance computed the prompt; else empty.
    - is_estimated: the engine reported no tokens.
    - adapter: the LoRA adapter of `model`; empty for the model itself.
    """

    id: str
    ended_wall: float
    tenant: str
    key: str
    tier: str
    model: str
    instance: str
    pool: str
    prefill_instance: str
    status: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    is_estimated: bool
    adapter: str = ""


class TenantQuotaReport(msgspec.Struct, array_like=True, frozen=True):
    """The counters and needs of one tenant, by limit; the supervisor adds the holder."""

    tenant: str
    rows: list[tuple[str, Row]]
    needs: list[tuple[str, Need]]


class QuotaReport(msgspec.Struct, tag=True):
    """Worker → supervisor: what tenants have used, and what their requests need."""

    tenants: list[TenantQuotaReport]


class QuotaUpdates(msgspec.Struct, tag=True):
    """Supervisor → worker: grants, each with its tenant."""

    updates: list[tuple[str, GrantUpdate]]


ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
"""The algorithms that may sign a token. All are asymmetric: a key that verifies cannot sign."""


class SigningKey(msgspec.Struct, array_like=True, frozen=True):
    """A public key of an issuer.

    key_id: as tokens name it; None if they do not.
    algorithms: those for which the key may be used.
    numbers: the key's parameters of the JWK: `n` and `e`, or `x` and `y`, in big-endian bytes.
    """

    key_id: str | None
    key_type: str
    curve: str | None
    algorithms: tuple[str, ...]
    numbers: dict[str, bytes]


class TokenIssuer(msgspec.Struct, array_like=True, frozen=True):
    """An issuer whose tokens are accepted if they are meant for one of the audiences.

    token_type: the header `typ` that tokens must have; None: the usual ones.
    """

    issuer: str
    audiences: tuple[str, ...]
    keys: tuple[SigningKey, ...]
    token_type: str | None = None


class TokenIssuerUpdate(msgspec.Struct, tag=True):
    """Supervisor → worker: all issuers of bearer tokens, with the keys that are known."""

    issuers: list[TokenIssuer]


class AccessReport(msgspec.Struct, tag=True):
    """Worker → supervisor: which keys callers have used since the last report.

    - used_keys: digests of API keys.
    - unknown_key_issuers: issuers of bearer tokens that name a key that is not in their key set.
    """

    used_keys: list[bytes] = []
    unknown_key_issuers: list[str] = []


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


class FleetUpdate(msgspec.Struct, tag=True):
    """Supervisor → worker: the fleet that replaces the last one, and the slots of its instances."""

    fleet: Fleet
    slots: dict[str, int]


class IndexedModels(msgspec.Struct, tag=True):
    """Supervisor → worker: the models (`namespace/name`) that have a KV-cache index."""

    models: list[str]


class KeyUpdate(msgspec.Struct, tag=True):
    """Supervisor → worker: the keys of the keys file."""

    keys: dict[bytes, str]
    are_keys_loaded: bool = True


class TenantUpdate(msgspec.Struct, tag=True):
    """Supervisor → worker: tenants that are new or changed, and names of those that are gone.

    - is_whole: there are no other tenants.

    Why not always the whole table: 10,000 tenants take a worker half a second, in which no request
    moves on.
    """

    changed: list[Tenant]
    removed: list[str] = []
    is_whole: bool = False


class RevocationUpdate(msgspec.Struct, tag=True):
    """Supervisor → worker: the digests of all keys that are refused although they are listed."""

    digests: list[bytes]


class ReloadCertificate(msgspec.Struct, tag=True):
    """Supervisor → worker: load the certificate's files again; they changed and match."""


class ActiveRows(msgspec.Struct, tag=True):
    """Supervisor → worker: the load table's rows of sibling workers and of other gateways."""

    rows: list[int]


class WarningsUpdate(msgspec.Struct, tag=True):
    """Supervisor → worker: warnings of the supervisor's own parts, as text."""

    warnings: list[str]


class PeerUpdates(msgspec.Struct, tag=True, omit_defaults=True):
    """Supervisor → worker: what sibling workers and other gateways did.

    - crashes: (fingerprint, instance, sent at, crashed at).
    - cleared: bodies that were answered after all, as (fingerprint, answered at).
    - service: engine seconds divided by weight, by model and tenant.
    """

    dispatches: list["Dispatch"] = []
    crashes: list[tuple[bytes, str, float, float]] = []
    cleared: list[tuple[bytes, float]] = []
    service: dict[str, dict[str, float]] = {}


class HotPrefixUpdate(msgspec.Struct, tag=True):
    """Supervisor → worker: the hot prefixes of a model that all gateways share.

    - serving, prefilling: 64-bit hashes in native order, for instances that answer and for those
      that only prefill.
    - epoch: 0 if the table is no longer updated.
    """

    model: str
    epoch: int
    serving: bytes
    prefilling: bytes


class IndexCorrections(msgspec.Struct, tag=True):
    """Supervisor → worker: what a model's instances have cached, by the KV-cache index."""

    model: str
    corrections: list[CacheCorrection]


class SampleRequest(msgspec.Struct, tag=True):
    """Supervisor → worker: a query for prompts, by hashes of their ends. Reply: `PromptSamples`."""

    model: str
    tails: list[int]


class ProfileUpdate(msgspec.Struct, tag=True):
    """Supervisor → worker: what was learned of engines, by instance.

    - sequences: the numbers of requests that an engine computes at a time.
    - memory_shares: how much of an engine's memory may be planned for.
    """

    profiles: dict[str, EngineProfile]
    sequences: dict[str, int] = {}
    memory_shares: dict[str, float] = {}


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
    """Query for the last requests. The reply is lists of `LoggedDecision`, newest first.

    callers: only requests of these tenants; None: of all.
    """

    query_id: int
    limit: int
    model: str | None
    callers: frozenset[str] | None = None


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
    | HotPrefixUpdate
    | IndexCorrections
    | SampleRequest
    | ProfileUpdate
    | QuotaUpdates
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

    dispatches: list["Dispatch"] = []
    prompt_ends: list["PromptFinished"] = []
    timings: list[TimingEvent] = []
    usage: list[UsageRow] = []
    decisions: list[tuple[str, bytes]] = []
    crashes: list[tuple[bytes, str, float, float]] = []
    cleared: list[tuple[bytes, float]] = []
    service: dict[str, dict[str, float]] = {}
    loads: dict[str, "EncodedLoad"] | None = None
    lost_usage: int = 0
    dropped_decisions: int = 0


class PromptSamples(msgspec.Struct, tag=True):
    """Worker → supervisor: the prompts of a `SampleRequest` that are still in memory."""

    model: str
    samples: list["PromptSample"]


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


class Dispatch(msgspec.Struct, array_like=True):
    """A prompt that counts at an instance.

    - hashes: of its blocks, 64-bit in native order.
    - tail: hash of its end.
    - session_hash: hash of its session; 0: none.
    - size: bytes of its text, for the KV-cache index; 0: the model's instances report no cache.
    """

    model: str
    instance: str
    hashes: bytes
    tail: int
    session_hash: int = 0
    size: int = 0


class PromptFinished(msgspec.Struct, array_like=True):
    """A prompt that has finished.

    - prompt_tokens, cached_tokens: as the engine reported them; None if it did not.
    - indexed_share, matched_share: shares of the prompt expected to be cached, by the index (None:
      without one) and by all that was known.
    """

    model: str
    instance: str
    tail: int
    prompt_tokens: int | None
    cached_tokens: int | None
    indexed_share: float | None
    matched_share: float


class PromptSample(msgspec.Struct, array_like=True):
    """The body of a request; `kind` is `CHAT` or `COMPLETION`.

    adapter: the LoRA adapter that gateways load for it; empty for the model itself.
    """

    tail: int
    kind: str
    body: bytes
    adapter: str = ""


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


CHAT_SAMPLE: Final = "chat"
COMPLETION_SAMPLE: Final = "completion"

"""What helper and workers tell each other. Times are monotonic seconds of the machine's one clock unless they say ``wall``."""

from typing import Final, TypeAlias

import msgspec

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Fleet
from fairlead_gateway.ipc.timing_events import TimingEvents
from fairlead_gateway.prefix_map.cache_correction import CacheCorrection
from fairlead_gateway.telemetry.snapshot import ModelSnapshot

# From the helper ---------------------------------------------------------------------------------------------------------


class Configure(msgspec.Struct, tag=True):
    """The first message: who the worker is and what it serves. ``keys`` maps digests to names, None where nobody is asked for
    one; ``rows`` says how much memory is shared, ``siblings`` whose rows in it are in use; ``publish``: there is a Redis;
    ``indexed``: there is an index where engines tell what they hold."""

    number: int
    gateway_id: str
    host: str
    port: int
    secret: bytes
    pepper: bytes | None
    keys: dict[bytes, str] | None
    certificate: tuple[str, str] | None
    fleet: Fleet
    slots: dict[str, int]
    row: int
    siblings: list[int]
    publish: bool
    indexed: bool
    notes: list[str]


class FleetUpdate(msgspec.Struct, tag=True):
    """A fleet that takes the place of the last one; ``slots`` are the instances' places in the shared rows."""

    fleet: Fleet
    slots: dict[str, int]


class KeyUpdate(msgspec.Struct, tag=True):
    """The keys file was read again."""

    keys: dict[bytes, str]


class ReloadCertificate(msgspec.Struct, tag=True):
    """The certificate's files have changed and fit each other."""


class ActiveRows(msgspec.Struct, tag=True):
    """The rows of the other workers that serve or drain just now."""

    rows: list[int]


class WarningsUpdate(msgspec.Struct, tag=True):
    """What is wrong or degraded beside the workers, in words."""

    notes: list[str]


class PeerUpdates(msgspec.Struct, tag=True):
    """What a sibling, or another gateway, has sent where: a list of ``Sent``, as it encoded it; on which bodies which engines broke
    off, since when they had them and when; and which of those bodies were answered, and when."""

    sent: bytes | None
    deaths: list[tuple[bytes, str, float, float]]
    cleared: list[tuple[bytes, float]] = []


class HotPrefixUpdate(msgspec.Struct, tag=True):
    """The hot prefixes of a model as all gateways see them: hashes (64-bit, native order) of prompts for instances that answer,
    and for those that only prefill. Epoch 0: nobody tells them any more."""

    model: str
    epoch: int
    serving: bytes
    prefilling: bytes


class IndexCorrections(msgspec.Struct, tag=True):
    """What the index says of a model's instances."""

    model: str
    corrections: list[CacheCorrection]


class SampleRequest(msgspec.Struct, tag=True):
    """Prompts of a model that the index wants to see, by the hashes of their ends; answered by ``Given`` with those that are still
    there."""

    model: str
    tails: list[int]


class ProfileUpdate(msgspec.Struct, tag=True):
    """What was learned of engines, by instance."""

    profiles: dict[str, EngineProfile]


class StartDrain(msgspec.Struct, tag=True):
    """Take no more, let what is under way finish, end."""


class GetState(msgspec.Struct, tag=True):
    """Answered by one ``State``."""

    ask: int


class GetCounters(msgspec.Struct, tag=True):
    """Answered by one ``ModelPart`` per model; with windows, the last minute until ``now`` too."""

    ask: int
    now: float
    windows: bool


class GetDecisions(msgspec.Struct, tag=True):
    """Answered by lists of ``WireLogged``, newest first."""

    ask: int
    limit: int
    model: str | None


class GetDecision(msgspec.Struct, tag=True):
    """Answered by a list of at most one ``WireLogged``."""

    ask: int
    request_id: str


class PreviewRoute(msgspec.Struct, tag=True):
    """Where would this request go? Answered by one ``Would``."""

    ask: int
    path: str
    body: bytes
    session: str | None


ToWorker: TypeAlias = (
    Configure
    | FleetUpdate
    | KeyUpdate
    | ReloadCertificate
    | ActiveRows
    | WarningsUpdate
    | PeerUpdates
    | HotPrefixUpdate
    | IndexCorrections
    | SampleRequest
    | ProfileUpdate
    | StartDrain
    | GetState
    | GetCounters
    | GetDecisions
    | GetDecision
    | PreviewRoute
)
Query: TypeAlias = GetState | GetCounters | GetDecisions | GetDecision | PreviewRoute

# From a worker -----------------------------------------------------------------------------------------------------------


class WorkerReady(msgspec.Struct, tag=True):
    """It listens, with the fleet of this version."""

    version: int


class StartFailed(msgspec.Struct, tag=True):
    """It could not start, and ends."""

    message: str


class FleetApplied(msgspec.Struct, tag=True):
    """From now on nothing is routed by an older snapshot than this version; ``problem`` says why this one was not taken."""

    version: int
    problem: str | None = None


class DrainRequested(msgspec.Struct, tag=True):
    """It was told to go, and asks to be drained as soon as somebody has taken its place."""


class FinalCounters(msgspec.Struct, tag=True):
    """Its counters as it ends."""

    models: list[ModelSnapshot]
    own: dict[str, int]


class WorkerReport(msgspec.Struct, tag=True):
    """What has happened since the last time. ``sent`` (a list of ``Sent``, encoded), ``deaths`` and ``cleared`` (as in ``Heard``) are
    for the siblings; ``sent``, ``records`` and ``loads`` for Redis (loads None: as before)."""

    sent: bytes | None
    deaths: list[tuple[bytes, str, float, float]]
    records: list["EncodedDecisionRecord"]
    loads: dict[str, "EncodedLoad"] | None
    dropped: int
    cleared: list[tuple[bytes, float]] = []


class IndexReport(msgspec.Struct, tag=True):
    """For the index: what was sent to instances that tell what they hold, and what of it is over; ``dropped`` rows did not fit."""

    sent: list["PromptDispatched"]
    ended: list["PromptFinished"]
    dropped: int


class PromptSamples(msgspec.Struct, tag=True):
    """Prompts that the helper asked for."""

    model: str
    samples: list["PromptSample"]


class NeedsInstance(msgspec.Struct, tag=True):
    """Requests of a model wait for a first instance."""

    model: str


class ReplyChunk(msgspec.Struct, tag=True):
    """A part of an answer, encoded."""

    ask: int
    data: bytes
    last: bool


FromWorker: TypeAlias = (
    WorkerReady
    | StartFailed
    | FleetApplied
    | DrainRequested
    | FinalCounters
    | WorkerReport
    | IndexReport
    | PromptSamples
    | TimingEvents
    | NeedsInstance
    | ReplyChunk
)

# Within them -------------------------------------------------------------------------------------------------------------


class Dispatch(msgspec.Struct, array_like=True):
    """A prompt was sent to an instance: the hashes of its blocks (64-bit, native order), of its end and of its session (0: it has
    none)."""

    model: str
    instance: str
    hashes: bytes
    tail: int
    pin: int = 0


class PromptDispatched(msgspec.Struct, array_like=True):
    """A prompt on its way: its end's hash, those of its blocks (64-bit, native order), the bytes of its text."""

    model: str
    instance: str
    tail: int
    hashes: bytes
    size: int


class PromptFinished(msgspec.Struct, array_like=True):
    """It is over. Tokens as the engine reported them; the shares of the prompt that should have been held there, by the index and by
    all that was known. None: not known."""

    model: str
    instance: str
    tail: int
    prompt_tokens: int | None
    cached_tokens: int | None
    indexed: float | None
    matched: float


class PromptSample(msgspec.Struct, array_like=True):
    """A request's body; ``kind`` as in ``samples``."""

    tail: int
    kind: str
    body: bytes


class EncodedLoad(msgspec.Struct, array_like=True, frozen=True):
    """A worker's own work on one instance; as ``telemetry.Load``."""

    inflight: int
    waiting: int
    backlog_seconds: float
    inflight_tokens: float


class WorkerState(msgspec.Struct, array_like=True):
    """How a worker is. ``standings`` are those of instances that are not simply healthy: (standing, why in words); ``held`` are
    requests that wait, by model."""

    ready: bool
    notes: list[str]
    loads: dict[str, EncodedLoad]
    standings: dict[str, tuple[str, str]]
    lag: list[tuple[float, float]]
    own: dict[str, int]
    in_flight: int
    held: dict[str, int]


class EncodedDecision(msgspec.Struct, array_like=True):
    """A ``Decision``."""

    chosen: str | None
    rule: str
    reason: str
    rejected: list[tuple[str, str]]
    inputs: dict[str, tuple[float | None, float | None]]
    cost_seconds: float | None


class EncodedPrefillAttempt(msgspec.Struct, array_like=True):
    """A ``PrefillLeg``."""

    instance_id: str
    decision: EncodedDecision
    began: float
    seconds: float | None
    result: str


class EncodedHandoff(msgspec.Struct, array_like=True):
    """A ``HandoffStory``."""

    outcome: str
    reason: str
    words: str
    waited_seconds: float
    legs: list[EncodedPrefillAttempt]
    where: EncodedDecision | None


class EncodedDecisionRecord(msgspec.Struct, array_like=True):
    """A ``DecisionRecord``."""

    request_id: str
    wall: float
    model_key: str
    decision: EncodedDecision
    attempt: int
    prompt_tokens: float
    caller: str | None
    story: EncodedHandoff | None


class RoutePreview(msgspec.Struct):
    """Where a request would go; ``refused`` (status, message, param, code) in its place is what it would be answered."""

    found: "EncodedLoggedRequest | None"
    refused: tuple[int, str, str | None, str | None] | None = None


class EncodedLoggedRequest(msgspec.Struct, array_like=True):
    """A ``Logged``; ``outcome`` holds the outcome's fields by name."""

    records: list[EncodedDecisionRecord]
    outcome: dict[str, object] | None


CHAT_SAMPLE: Final = "chat"


COMPLETION_SAMPLE: Final = "completion"

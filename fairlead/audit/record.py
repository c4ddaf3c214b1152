"""The audit record: one line of JSON, without a key, a token or a prompt.

Lines are bounded: texts are cut, and of the values before and after, the first ones are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import msgspec

from fairlead.errors import BadInput

STREAM_NAME: Final = "fairlead.audit"
"""The value of `log` in every line, by which a log collector finds audit records."""
MAX_TEXT_CHARS: Final = 500
"""Characters of one text of a record; the rest is cut."""
MAX_VALUES: Final = 32
"""Values before a change, and values after it."""
SHORT_DIGEST_CHARS: Final = 8
Value = str | int | float | bool | None


class Action(StrEnum):
    """The action of a record."""

    TENANTS_LOADED = "TenantsLoaded"
    TENANT_ADDED = "TenantAdded"
    TENANT_CHANGED = "TenantChanged"
    TENANT_REMOVED = "TenantRemoved"
    LIMITS_CHANGED = "LimitsChanged"
    KEY_CREATED = "KeyCreated"
    KEY_ROTATED = "KeyRotated"
    KEY_CHANGED = "KeyChanged"
    KEY_EXPIRED = "KeyExpired"
    KEY_REVOKED = "KeyRevoked"
    SUBJECT_ADDED = "SubjectAdded"
    SUBJECT_REMOVED = "SubjectRemoved"
    MODELS_LOADED = "ModelsLoaded"
    MODEL_ADDED = "ModelAdded"
    MODEL_CHANGED = "ModelChanged"
    MODEL_REMOVED = "ModelRemoved"
    MANAGEMENT_READ = "ManagementRead"
    ACCESS_DENIED = "AccessDenied"
    TOKENS_CHANGED = "TokensChanged"
    WORKLOAD_CREATED = "WorkloadCreated"
    WORKLOAD_CHANGED = "WorkloadChanged"
    WORKLOAD_REMOVED = "WorkloadRemoved"
    ENGINE_RESTARTED = "EngineRestarted"
    SCALED = "Scaled"
    RECORDS_LOST = "RecordsLost"


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """The content of an audit record, without its process and its time.

    actor: who did it, such as a management token, a field manager of Kubernetes, or a component.
    object: what it was done to, as `Kind/name`.
    tenant: whose object it is; None for objects of the cluster.
    before, after: the values that changed. Digests are short, and secrets are absent.
    reason: why, as text.
    request_id: id of the management request, if one caused it.
    """

    action: Action
    object: str
    actor: str
    tenant: str | None = None
    before: Mapping[str, Value] = field(default_factory=dict)
    after: Mapping[str, Value] = field(default_factory=dict)
    reason: str = ""
    request_id: str | None = None


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change or one privileged request: who, when, what, and why.

    - time: RFC 3339 in UTC.
    - component: gateway, operator or autoscaler.
    - instance: The process that wrote it.
    - sequence: Counts the records of the process from 1; a gap is a loss.
    - action: A word of a closed list, such as KeyRevoked.
    - object: What was changed or read, such as ModelTenant/acme.
    - actor: Who did it: a management token, a field manager of Kubernetes, or a component.
    - tenant: Whose object it is; null for objects of the cluster.
    - before: Values that changed, before.
    - after: The same, after.
    """

    log: str = ""
    time: str
    component: str
    instance: str
    sequence: int
    action: str
    object: str
    actor: str
    tenant: str | None = None
    before: dict[str, Value] = {}
    after: dict[str, Value] = {}
    reason: str = ""
    request_id: str | None = None

    @property
    def wall(self) -> float:
        """The time in Unix seconds."""
        return datetime.fromisoformat(self.time).timestamp()


def make_record(event: AuditEvent, *, wall: float, component: str, instance: str, sequence: int) -> AuditRecord:
    """Returns the record of an event, with its texts cut to their bounds."""
    return AuditRecord(
        log=STREAM_NAME,
        time=datetime.fromtimestamp(wall, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        component=component,
        instance=instance,
        sequence=sequence,
        action=event.action.value,
        object=_cut(event.object),
        actor=_cut(event.actor),
        tenant=None if event.tenant is None else _cut(event.tenant),
        before=_cut_values(event.before),
        after=_cut_values(event.after),
        reason=_cut(event.reason),
        request_id=None if event.request_id is None else _cut(event.request_id),
    )


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(AuditRecord).decode


def encode_record(record: AuditRecord) -> bytes:
    return _encode(record)


def decode_record(line: bytes) -> AuditRecord:
    """Returns the record of a line. Raises BadInput for anything else."""
    try:
        record = _decode(line)
        record.wall  # noqa: B018 - a time that cannot be read is refused here
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadInput("a line is not an audit record") from error
    return record


def to_builtins(record: AuditRecord) -> dict[str, Any]:
    """Returns the record as JSON values, without the name of the stream."""
    values: dict[str, Any] = msgspec.to_builtins(record)
    values.pop("log", None)
    return values


def short_digest(digest: bytes) -> str:
    return digest.hex()[:SHORT_DIGEST_CHARS]


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"


def _cut_values(values: Mapping[str, Value]) -> dict[str, Value]:
    kept = {name: _cut(value) if isinstance(value, str) else value for name, value in list(values.items())[:MAX_VALUES]}
    if len(values) > MAX_VALUES:
        kept["…"] = len(values) - MAX_VALUES
    return kept

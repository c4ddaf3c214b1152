"""What gateways write to Redis, as bytes: a leading schema byte, then msgpack with named fields.

A reader ignores fields that it does not know and fills in those that are missing, so the previous and the next release
can read it; a change that this cannot bear gets a new schema byte, which older readers skip. Never a prompt: ids, counts, seconds
and the words of rules.
"""

from itertools import islice
from typing import Final, Protocol, TypeVar

import msgspec

from fairlead.decision import Decision

SCHEMA: Final = b"\x01"
MAX_REJECTED: Final = 16
T = TypeVar("T")


class LoggedDecision(Protocol):
    """One decision as the gateway's log keeps it."""

    @property
    def request_id(self) -> str:
        """The request that was routed."""
        ...

    @property
    def wall(self) -> float:
        """Unix seconds of the decision."""
        ...

    @property
    def model_key(self) -> str:
        """``namespace/name``."""
        ...

    @property
    def decision(self) -> Decision:
        """The choice with its reason."""
        ...

    @property
    def attempt(self) -> int:
        """1 for the first choice, more for retries."""
        ...

    @property
    def prompt_tokens(self) -> float:
        """The estimate that the choice was made with."""
        ...


class PublishedDecision(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of the decision stream. ``inputs`` maps a name to (value, age in seconds)."""

    gateway: str
    request: str
    wall: float
    model: str
    chosen: str | None = None
    rule: str = ""
    reason: str = ""
    attempt: int = 1
    prompt_tokens: float = 0.0
    cost_seconds: float | None = None
    rejected: tuple[tuple[str, str], ...] = ()
    inputs: dict[str, tuple[float | None, float | None]] = {}


def published_decision(record: LoggedDecision, gateway_id: str) -> PublishedDecision:
    """The entry for one record; of many rejected instances only the first few, with their inputs, go along."""
    made = record.decision
    rejected = tuple((item.id, item.why) for item in made.rejected[:MAX_REJECTED])
    inputs = made.inputs.items()
    if len(made.rejected) > MAX_REJECTED:
        kept = {made.chosen, *(item for item, _ in rejected)}
        known = {item.id for item in made.rejected} - kept
        inputs = {name: value for name, value in inputs if name.rpartition("/")[0] not in known}.items()
    return PublishedDecision(
        gateway=gateway_id,
        request=record.request_id,
        wall=record.wall,
        model=record.model_key,
        chosen=made.chosen,
        rule=made.rule,
        reason=made.reason,
        attempt=record.attempt,
        prompt_tokens=record.prompt_tokens,
        cost_seconds=made.cost_seconds,
        rejected=rejected,
        inputs={name: (value.value, value.age_seconds) for name, value in islice(inputs, 8 * (MAX_REJECTED + 2))},
    )


def encode(value: msgspec.Struct) -> bytes:
    """The bytes of one value."""
    return SCHEMA + msgspec.msgpack.encode(value)


def decode(data: bytes, kind: type[T]) -> T | None:
    """The value, or None when it was written under another schema or is damaged."""
    if data[:1] != SCHEMA:
        return None
    try:
        return msgspec.msgpack.decode(data[1:], type=kind)
    except msgspec.DecodeError:
        return None

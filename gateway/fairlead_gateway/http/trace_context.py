"""W3C trace context: strict parsing of what clients send, and headers for engines.

A valid `traceparent` is forwarded unchanged with its `tracestate`. An invalid one is dropped with
its `tracestate`. Sampling is not decided here.

Source: https://www.w3.org/TR/trace-context/
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

TRACEPARENT: Final = b"traceparent"
TRACESTATE: Final = b"tracestate"
_TRACEPARENT_VALUE: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED_FLAG: Final = 0x01
_RANDOM_FLAG: Final = 0x02
_INVALID_TRACE_ID: Final = b"0" * 32
_INVALID_SPAN_ID: Final = b"0" * 16
_MAX_STATE_BYTES: Final = 4_096
HeaderFields = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The trace that a request belongs to. Ids are lower-case hexadecimal; `state` is `tracestate`
    unchanged.
    """

    trace_id: str
    span_id: str
    flags: int
    state: str = ""

    @property
    def is_sampled(self) -> bool:
        """True if the client records this trace."""
        return bool(self.flags & _SAMPLED_FLAG)


def parse_traceparent(value: bytes) -> tuple[bytes, bytes, int] | None:
    """Returns trace id, span id and flags of a `traceparent`; None if it is malformed."""
    found = _TRACEPARENT_VALUE.fullmatch(value)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if (
        version == b"ff"
        or (version == b"00" and more is not None)
        or trace_id == _INVALID_TRACE_ID
        or span_id == _INVALID_SPAN_ID
    ):
        return None
    return trace_id, span_id, int(flags, 16)


def extract_context(fields: HeaderFields) -> TraceContext | None:
    """Returns the trace context of a request; None if there is no valid one."""
    values = [value for name, value in fields if name == TRACEPARENT]
    found = parse_traceparent(values[0].strip(b" \t")) if len(values) == 1 else None
    if found is None:
        return None
    trace_id, span_id, flags = found
    return TraceContext(trace_id.decode(), span_id.decode(), flags, _parse_tracestate(fields))


def forwarded_header(fields: HeaderFields) -> bytes:
    """Returns the client's trace context as header text; empty if there is no valid one."""
    found = extract_context(fields)
    if found is None:
        return b""
    parent = next(value.strip(b" \t") for name, value in fields if name == TRACEPARENT)
    state = f"tracestate: {found.state}\r\n".encode("latin-1") if found.state else b""
    return b"traceparent: %b\r\n%b" % (parent, state)


def sampled_header(trace_id: str, span_id: str, flags: int, state: str) -> str:
    """Returns header text of a context that the gateway samples. Unknown flags are cleared."""
    kept = (flags & _RANDOM_FLAG) | _SAMPLED_FLAG
    more = f"tracestate: {state}\r\n" if state else ""
    return f"traceparent: 00-{trace_id}-{span_id}-{kept:02x}\r\n{more}"


def _parse_tracestate(fields: HeaderFields) -> str:
    """Joins the `tracestate` fields into one list; empty if it is too long, as the specification
    allows.
    """
    parts = [value.strip(b" \t") for name, value in fields if name == TRACESTATE]
    joined = b",".join(part for part in parts if part)
    return joined.decode("latin-1") if len(joined) <= _MAX_STATE_BYTES else ""

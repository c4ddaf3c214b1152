"""W3C trace context: what a client sent, read strictly, and what engines are sent on.

Nothing here samples or measures. A ``traceparent`` that is right is passed on as it came, with its ``tracestate``; one that is not is
dropped, and its ``tracestate`` with it, as the specification wants. https://www.w3.org/TR/trace-context/
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PARENT: Final = b"traceparent"
STATE: Final = b"tracestate"
_SHAPE: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED: Final = 0x01
_RANDOM: Final = 0x02
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16
_STATE_BYTES: Final = 4_096
Fields = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Context:
    """Where a request comes from. Ids are lower-case hexadecimal; ``state`` is the ``tracestate`` as it came, all of it."""

    trace_id: str
    span_id: str
    flags: int
    state: str = ""

    @property
    def sampled(self) -> bool:
        """The caller records this trace."""
        return bool(self.flags & _SAMPLED)


def parse(value: bytes) -> tuple[bytes, bytes, int] | None:
    """Trace id, span id and flags of a ``traceparent``; None when it is malformed."""
    found = _SHAPE.fullmatch(value)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more is not None) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return trace_id, span_id, int(flags, 16)


def context(fields: Fields) -> Context | None:
    """What the header fields of a request say; None when there is nothing, or nothing right."""
    given = [value for name, value in fields if name == PARENT]
    found = parse(given[0].strip(b" \t")) if len(given) == 1 else None
    if found is None:
        return None
    trace_id, span_id, flags = found
    return Context(trace_id.decode(), span_id.decode(), flags, _state(fields))


def passed_on(fields: Fields) -> bytes:
    """The client's own trace context as ready header text; empty where it sent none that is right."""
    found = context(fields)
    if found is None:
        return b""
    parent = next(value.strip(b" \t") for name, value in fields if name == PARENT)
    state = f"tracestate: {found.state}\r\n".encode("latin-1") if found.state else b""
    return b"traceparent: %b\r\n%b" % (parent, state)


def header(trace_id: str, span_id: str, flags: int, state: str) -> str:
    """Ready header text of a context that is sampled here. Flags that nobody knows yet are not passed on."""
    kept = (flags & _RANDOM) | _SAMPLED
    more = f"tracestate: {state}\r\n" if state else ""
    return f"traceparent: 00-{trace_id}-{span_id}-{kept:02x}\r\n{more}"


def _state(fields: Fields) -> str:
    """Several fields are one list; a list that is too long is left out, as the specification allows."""
    parts = [value.strip(b" \t") for name, value in fields if name == STATE]
    whole = b",".join(part for part in parts if part)
    return whole.decode("latin-1") if len(whole) <= _STATE_BYTES else ""

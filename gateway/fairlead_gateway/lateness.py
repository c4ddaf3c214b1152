"""How long a request may take: what its client says, and what a plain answer may take at most.

``x-request-timeout`` holds seconds (``2.5``) or a duration (``800ms``, ``1m30s``), counted from the request's last byte. An engine
gets what is left of it in the same field. A stream without the field has no deadline as a whole: its silences have.
"""

import math
from typing import Final

from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead.units import duration, seconds
from fairlead_gateway.errors import BadRequest, EngineSilent, GatewayError
from fairlead_gateway.head import Head

FIELD: Final = b"x-request-timeout"
_CHARACTERS = 32


def timeout_of(head: Head) -> float | None:
    """The client's own timeout in seconds. Raises BadRequest naming the field."""
    given = head.get(FIELD)
    if given is None:
        return None
    text = given.decode("latin-1")
    try:
        found = _seconds(text) if len(text) <= _CHARACTERS else 0.0
    except (BadInput, ValueError):
        found = 0.0
    if not 0.0 < found < math.inf:
        name = FIELD.decode()
        raise BadRequest(
            f"{name}: a positive number of seconds or a duration is expected",
            param=name,
            code="invalid_value",
            hint="write it like 30, 2.5, 800ms or 1m30s",
        )
    return found


def allowed(head: Head, stream: bool, limits: Limits) -> float | None:
    """Seconds that the whole answer may take; None for a stream whose client says nothing. Raises BadRequest."""
    told = timeout_of(head)
    if stream:
        return told
    return limits.answer_seconds if told is None else min(told, limits.answer_seconds)


def remaining(head: Head, until: float | None, now: float) -> str:
    """What is left of the client's time, as the header text that an engine gets."""
    if until is None or head.get(FIELD) is None:
        return ""
    return f"{FIELD.decode()}: {max(0.001, until - now):.3f}\r\n"


def too_late(head: Head, taken: float) -> GatewayError:
    """What the client is told when its request took too long."""
    if head.get(FIELD) is not None:
        return EngineSilent(
            f"no answer within the request's own deadline ({duration(taken)})", code="deadline_exceeded"
        )
    return EngineSilent(f"the answer was not complete after {duration(taken)}", code="answer_timeout")


def _seconds(text: str) -> float:
    return float(text) if text[-1:].isdigit() or text[-1:] == "." else seconds(text)

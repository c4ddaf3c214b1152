"""How long a request may take: what its client says, and what a plain answer may take at most.

``x-request-timeout`` holds seconds (``2.5``) or a duration (``800ms``, ``1m30s``), counted from the request's last byte. An engine
gets what is left of it in the same field. A stream without the field has no deadline as a whole: its silences have.
"""

import math
from typing import Final

from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead.units import format_duration, parse_duration
from fairlead_gateway.errors import BadRequest, EngineTimeout, GatewayError
from fairlead_gateway.http.request_head import RequestHead

TIMEOUT_HEADER: Final = b"x-request-timeout"
_MAX_CHARACTERS = 32


def client_timeout(head: RequestHead) -> float | None:
    """The client's own timeout in seconds. Raises BadRequest naming the field."""
    given = head.get(TIMEOUT_HEADER)
    if given is None:
        return None
    text = given.decode("latin-1")
    try:
        found = _parse_seconds(text) if len(text) <= _MAX_CHARACTERS else 0.0
    except (BadInput, ValueError):
        found = 0.0
    if not 0.0 < found < math.inf:
        name = TIMEOUT_HEADER.decode()
        raise BadRequest(
            f"{name}: a positive number of seconds or a duration is expected",
            param=name,
            code="invalid_value",
            hint="write it like 30, 2.5, 800ms or 1m30s",
        )
    return found


def total_timeout(head: RequestHead, stream: bool, limits: Limits) -> float | None:
    """Seconds that the whole answer may take; None for a stream whose client says nothing. Raises BadRequest."""
    told = client_timeout(head)
    if stream:
        return told
    return limits.response_seconds if told is None else min(told, limits.response_seconds)


def remaining_timeout_header(head: RequestHead, deadline: float | None, now: float) -> str:
    """What is left of the client's time, as the header text that an engine gets."""
    if deadline is None or head.get(TIMEOUT_HEADER) is None:
        return ""
    return f"{TIMEOUT_HEADER.decode()}: {max(0.001, deadline - now):.3f}\r\n"


def timeout_error(head: RequestHead, allowed_seconds: float) -> GatewayError:
    """What the client is told when its request took too long."""
    if head.get(TIMEOUT_HEADER) is not None:
        return EngineTimeout(
            f"no answer within the request's own deadline ({format_duration(allowed_seconds)})",
            code="deadline_exceeded",
        )
    return EngineTimeout(f"the answer was not complete after {format_duration(allowed_seconds)}", code="answer_timeout")


def _parse_seconds(text: str) -> float:
    return float(text) if text[-1:].isdigit() or text[-1:] == "." else parse_duration(text)

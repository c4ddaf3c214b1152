"""The deadline of a request: the client's own, and the longest time of a plain response.

`x-request-timeout` holds seconds (`2.5`) or a duration (`800ms`, `1m30s`), from the last byte of
the request. An engine gets what is left of it in the same header. A stream without the header has
no deadline, only stall timeouts.
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
    """Returns the client's timeout in seconds; None without the header. Raises BadRequest."""
    value = head.get_rare(TIMEOUT_HEADER)
    if value is None:
        return None
    text = value.decode("latin-1")
    try:
        seconds = _parse_seconds(text) if len(text) <= _MAX_CHARACTERS else 0.0
    except (BadInput, ValueError):
        seconds = 0.0
    if not 0.0 < seconds < math.inf:
        name = TIMEOUT_HEADER.decode()
        raise BadRequest(
            f"{name}: a positive number of seconds or a duration is expected",
            param=name,
            code="invalid_value",
            hint="write it like 30, 2.5, 800ms or 1m30s",
        )
    return seconds


def total_timeout(head: RequestHead, stream: bool, limits: Limits) -> float | None:
    """Returns the seconds for the whole response; None for a stream without the header.

    Raises BadRequest.
    """
    seconds = client_timeout(head)
    if stream:
        return seconds
    return limits.response_seconds if seconds is None else min(seconds, limits.response_seconds)


def remaining_timeout_header(head: RequestHead, deadline: float | None, now: float) -> str:
    """Returns the header line with what is left of the client's timeout; empty without one."""
    if deadline is None or head.get_rare(TIMEOUT_HEADER) is None:
        return ""
    return f"{TIMEOUT_HEADER.decode()}: {max(0.001, deadline - now):.3f}\r\n"


def timeout_error(head: RequestHead, allowed_seconds: float) -> GatewayError:
    """Returns the error for a request that took too long."""
    if head.get_rare(TIMEOUT_HEADER) is not None:
        return EngineTimeout(
            f"no answer within the request's own deadline ({format_duration(allowed_seconds)})",
            code="deadline_exceeded",
        )
    return EngineTimeout(f"the answer was not complete after {format_duration(allowed_seconds)}", code="answer_timeout")


def _parse_seconds(text: str) -> float:
    return float(text) if text[-1:].isdigit() or text[-1:] == "." else parse_duration(text)

"""Whether what an engine answered can go to the client, or is the engine's failure and another one should be asked."""

import re
from typing import Final

import msgspec

from fairlead_gateway.answer import Answer
from fairlead_gateway.engine_fields import COUNTS, PLAIN_ANSWER
from fairlead_gateway.errors import error_body
from fairlead_gateway.job import Job
from fairlead_gateway.retry import DIED, Failure
from fairlead_gateway.sse import Fault, Usage, engine_fault, usage_of
from fairlead_gateway.upstream import Broken

_LOOKED_INTO_BYTES: Final = 65_536
_TAIL_BYTES: Final = 4_096
_OVERLOAD = frozenset({429, 503})
_WRONG_MODEL = re.compile(
    rb'"param"\s*:\s*"model"|The model `[^`]{1,512}` does not exist'
)  # what embeds names no param
_DECODE: Final = PLAIN_ANSWER.decode
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def judge(job: Job, answer: Answer, broken: Broken | None, late: bool) -> None:
    """Raise a Failure unless the answer can be passed on; the usage of a whole plain one becomes the job's. ``late``: nobody has
    time for another engine."""
    if broken is not None:
        raise Failure(broken.why, died=broken.why in DIED, final=late)
    if answer.status == 404 and answer.complete and _is_wrong_model(answer.whole_body):
        raise Failure("wrong-model")  # the address belongs to somebody else now
    fault = _fault(job, answer)
    if fault is None:
        return
    if fault.status in _OVERLOAD:
        raise Failure("overloaded", overloaded=True)
    if fault.status >= 500:
        raise Failure(f"status-{fault.status}")


def _fault(job: Job, answer: Answer) -> Fault | None:
    if answer.stream:
        if answer.events.fault is not None:
            return answer.events.fault
        if answer.events.aborted:
            return Fault(500, "aborted")
        return Fault(502, "an empty stream") if answer.complete and not answer.events.done else None
    status = answer.status
    if status == 429:
        return None  # a 4xx is the client's business, also this one
    if status == 401 and job.instance is not None and job.instance.access.shows_token:
        return Fault(502, "the engine wants another token")
    if status >= 400:
        return Fault(status, "")
    if job.ask.stream or not (status == 200 or (job.ask.opaque and 200 < status < 300)):
        return Fault(502, "not what was asked for")
    if not answer.complete:
        return None
    usage, readable = _usage(answer.whole_body)
    job.counted(usage)
    return None if readable or job.ask.opaque else Fault(502, "not JSON")


def _usage(body: bytes) -> tuple[Usage | None, bool]:
    """The usage of a plain answer, and whether the body can be an answer at all."""
    if len(body) > _LOOKED_INTO_BYTES:
        at = body.rfind(b'"usage"', len(body) - _TAIL_BYTES)
        start = body.find(b"{", at) if at >= 0 else -1
        try:
            found = COUNTS.decode(body[start : body.find(b"}", start) + 1]) if start >= 0 else None
        except msgspec.DecodeError:
            found = None
        return usage_of(found), body.lstrip()[:1] == b"{" and body.rstrip()[-1:] == b"}"
    try:
        read = _DECODE(body)
    except _UNREADABLE:
        return None, False
    return usage_of(read.usage), True


def not_served(status: int, request_id: str) -> bytes:
    """An error object in place of what an engine says when it has no such path (``{"detail":"Not Found"}``) or no words."""
    if status in (404, 405):
        text, code = "the model's engine does not serve this path", "unknown_url"
    else:
        text, code = "the engine does not serve this request", "engine_refused"
    return error_body(text, "invalid_request_error", None, code, request_id)


def _is_wrong_model(body: bytes) -> bool:
    """Whether an engine says that it does not serve the model that the fleet says it serves."""
    return len(body) < _TAIL_BYTES and b'"NotFoundError"' in body and _WRONG_MODEL.search(body) is not None


def is_error_object(body: bytes) -> bool:
    """Whether an engine's answer is an OpenAI error object with words."""
    try:
        error = _DECODE(body).error
    except _UNREADABLE:
        return False
    return error is not msgspec.UNSET and bool(engine_fault(bytes(error), 400).message)

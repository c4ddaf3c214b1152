"""Sets the parameters of a route in the body of a request.

The texts of other members stay as they are, and so does their order. New members stand in front;
those that the client wrote get another value in their place.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from fairlead.routes.resolution import RouteDecision
from fairlead.routes.rewriting import BODY_FORMS, BodyForm, Number, RewritePlan
from fairlead_gateway.worker.openai.body_parser import chat_fields
from fairlead_gateway.worker.openai.json_edit import contains_any, prepend_members, set_members
from fairlead_gateway.worker.openai.request import ModelRequest
from fairlead_gateway.worker.openai.schemas import MEMBERS_DECODER

_FORMS: Final = BODY_FORMS
_ESCAPE: Final = b"\\u"
_NO_NUMBER: Final = float("inf")
_DECODE_NUMBER: Final = msgspec.json.Decoder(int | float | None).decode


def apply_rewrite(request: ModelRequest, decision: RouteDecision, path: str) -> None:
    """Sets the parameters of the route that has chosen the model of a request.

    Changes the body for the engine, and what the gateway itself reads of these parameters.
    """
    form = _FORMS.get(path)
    plan = decision.rewrite
    if form is None or plan is None or not request.body:
        return
    rewrite = _rewrite_members if request.is_passthrough else _rewrite_generation
    changes = rewrite(request, plan, form)
    if changes:
        decision.changes = tuple([f"{name}={number}" for name, number in changes.items()])


def _rewrite_generation(request: ModelRequest, plan: RewritePlan, form: BodyForm) -> dict[str, Number]:
    """Rewrites a chat or a completion. Returns the new values."""
    scanned = request.decoded_fields is None
    start, end = request.messages_start, request.messages_end
    fields: Any = chat_fields(request.client_body, start, end) if scanned else request.fields
    changes = plan.changes(form, lambda name: getattr(fields, name))
    if not changes:
        return changes
    texts = {name: msgspec.json.encode(number) for name, number in changes.items()}
    if any(getattr(fields, name) is not None for name in changes):
        is_set = True
    elif scanned:  # its keys are plain, and stand outside the messages
        body = request.client_body
        is_set = any(_has_key(body, name, start, end) for name in changes)
    else:
        is_set = contains_any(request.body, [_ESCAPE, *[b'"%b"' % name.encode() for name in changes]])
    request.body = set_members(request.body, texts) if is_set else prepend_members(request.body, texts)
    request.set_parameters(changes)
    for name in form.limits:
        limit = changes.get(name, getattr(fields, name))
        if limit is not None:
            request.max_tokens = int(limit)
            break
    answers = [changes.get(name, getattr(fields, name)) for name in form.counts]
    request.sequences = max(1, *[int(count or 1) for count in answers])
    return changes


def _has_key(body: bytes, name: str, start: int, end: int) -> bool:
    key = b'"%b"' % name.encode()
    return body.find(key, 0, start) >= 0 or body.find(key, end) >= 0


def _rewrite_members(request: ModelRequest, plan: RewritePlan, form: BodyForm) -> dict[str, Number]:
    """Rewrites a body that is only passed on. Returns the new values."""
    members: Mapping[str, msgspec.Raw] = MEMBERS_DECODER.decode(request.body)
    changes = plan.changes(form, lambda name: _number(members.get(name)))
    if changes:
        request.body = set_members(
            request.body, {name: msgspec.json.encode(number) for name, number in changes.items()}
        )
    if request.is_counted and form.limit in changes:
        request.max_tokens = int(changes[form.limit])
    return changes


def _number(raw: msgspec.Raw | None) -> Number | None:
    """Returns a parameter's number; None if it is absent or null.

    A text counts as more than any number: some engines read numbers in texts.
    """
    if raw is None:
        return None
    try:
        number: Number | None = _DECODE_NUMBER(raw)
    except msgspec.DecodeError:
        return _NO_NUMBER
    return number

"""The model behind a route's name, for one request.

The revision that serves a conversation while a rollout has a canary.

The choice is a pure function of the model, the conversation and the weight, so all gateways agree,
and nothing is stored. A weight that grows moves conversations to the canary only.

Sets the parameters of a route in the body of a request.

The texts of other members stay as they are, and so does their order. New members stand in front;
those that the client wrote get another value in their place.

Identifies the conversation of a request, so that a route sends all of its turns to one model.

The client's name for the conversation counts first. Without one, a chat is identified by its text
up to the end of the first message of a user: later turns begin with the same bytes. Of any other
request, the whole prompt counts.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import xxhash
from xxhash import xxh3_64_digest

from fairlead.fleet.model import Fleet
from fairlead_gateway.dialects.body_form import BodyForm
from fairlead_gateway.dialects.schemas import MEMBERS_DECODER
from fairlead_gateway.errors import RouteWithoutTarget
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.native import USER_MESSAGE_END
from fairlead_gateway.openai.body_parser import ModelRequest, scanned_fields
from fairlead_gateway.openai.json_edit import contains_any, prepend_members, set_members, string_end
from fairlead_gateway.openai.model_names import ModelEntry
from fairlead_gateway.openai.request import prompt_text, session_name
from fairlead_gateway.routes.rewriting import Number, RewritePlan
from fairlead_gateway.routes.target_choice import RequestFacts, RouteDecision, RouteTable, is_drawn
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN, estimated_tokens

_DIGEST: Final = xxh3_64_digest
_USER_MESSAGE_END: Final = USER_MESSAGE_END
_QUOTE: Final = ord('"')
_OPENING: Final = ord("{")
_CLOSING: Final = ord("}")
_ROLE: Final = b'"role"'
_USER: Final = b'"user"'
_COMPACT_OPENING: Final = b'{"role":"user","content":"'
_SPACED_OPENING: Final = b'{"role": "user", "content": "'
"""A message of a user, as most clients begin it."""
_MAX_MESSAGES: Final = 64
MAX_MESSAGE_BYTES: Final = 16_384
"""Bytes of the first message of a user that count; more would only cost time."""

BY_SESSION: Final = "session"
BY_PROMPT: Final = "conversation"

_SEED: Final = xxhash.xxh3_64_intdigest(b"canary")

_ESCAPE: Final = b"\\u"
_NO_NUMBER: Final = float("inf")
_DECODE_NUMBER: Final = msgspec.json.Decoder(int | float | None).decode


def session_digest(session: bytes, tenant: str | None) -> bytes:
    return _DIGEST(session if tenant is None else b"%b\0%b" % (tenant.encode(), session))


def prompt_digest(text: bytes, start: int, end: int) -> bytes:
    """Returns the digest of the part of a prompt that all turns of its conversation begin with.

    start, end: where the prompt lies; of a chat, the text between the brackets of its messages.
    """
    return _DIGEST(text[start : conversation_end(text, start, end)])


def text_digest(request: ModelRequest, body: bytes) -> bytes:
    """Returns what identifies the conversation of a request that is no scanned chat.

    Without a prompt that is read, its body counts.
    """
    text = prompt_text(request) or body
    return prompt_digest(text, 0, len(text))


def conversation_end(text: bytes, start: int, end: int) -> int:
    """Returns the end of the first message of a user, or of the part of it that counts.

    It is `end` if none is among the first messages.
    """
    scan = _USER_MESSAGE_END
    usual = usual_end(text, start, end) if scan is None else scan(text, start, end, MAX_MESSAGE_BYTES)
    if usual:
        return usual
    position = start
    for _ in range(_MAX_MESSAGES):
        begin = text.find(b"{", position, end)
        if begin < 0:
            return end
        position, is_user = _read_object(text, begin, end)
        if is_user:
            return min(position, begin + MAX_MESSAGE_BYTES)
    return end


def usual_end(text: bytes, start: int, end: int) -> int:
    """Returns the end of the first message of a user, if it is written as most clients do; else 0.

    It is the reference for `native.conversation_scanner`, which replaces it where it is compiled.

    Why: to read all messages before it takes several times as long. Inside texts, quotes are
    escaped, so only an object begins like this. All turns of a conversation have it at one place,
    since no message of a user in another form comes before it.
    """
    opening = _COMPACT_OPENING
    begin = text.find(opening, start, end)
    spaced = text.find(_SPACED_OPENING, start, end if begin < 0 else begin)
    if spaced >= 0:
        begin, opening = spaced, _SPACED_OPENING
    if begin < 0 or text.find(_USER, start, begin) >= 0:
        return 0
    content = begin + len(opening) - 1
    limit = begin + MAX_MESSAGE_BYTES
    close = text.find(b'"', content + 1, limit)
    if close >= 0 and text.find(b"\\", content, close) < 0:
        behind = close + 1
    else:
        behind = limit if close < 0 and limit <= end else string_end(text, content)
    if behind >= limit:
        return limit if limit < end else end
    if behind < end and text[behind] == _CLOSING:
        return behind + 1
    return 0


def _read_object(text: bytes, start: int, end: int) -> tuple[int, bool]:
    """Returns the end of the object that starts at `start`, and whether it is of a user.

    Of a long message of a user, any end beyond the part that counts.
    """
    depth = 0
    position = start
    is_role = is_user = False
    while position < end:
        char = text[position]
        if char == _QUOTE:
            behind = string_end(text, position)
            if is_role:
                is_user = text[position:behind] == _USER
                is_role = False
            elif depth == 1 and behind - position == 6:
                is_role = text[position:behind] == _ROLE
            position = behind
            if is_user and position - start > MAX_MESSAGE_BYTES:
                return position, True
            continue
        position += 1
        if char == _OPENING:
            depth += 1
        elif char == _CLOSING:
            depth -= 1
            if depth == 0:
                return position, is_user
    return end, is_user


class HttpRequestFacts(RequestFacts):
    """The facts about a request of a client that decide."""

    def __init__(self, http_request: HttpRequest, parsed: ModelRequest) -> None:
        self._http_request = http_request
        self._parsed = parsed

    def header(self, name: str) -> str | None:
        """Returns the value of a header; None without it."""
        value = self._http_request.head.get(name.encode())
        return None if value is None else value.decode("latin-1")

    def tenant(self) -> str | None:
        """Returns the name of the tenant; None without one."""
        caller = self._http_request.caller
        return None if caller is None else caller.name

    def conversation(self) -> tuple[bytes, str]:
        """Returns what identifies the conversation, and the name of its source."""
        parsed, http_request = self._parsed, self._http_request
        session, is_one_conversation = session_name(parsed, http_request.head)
        if session is not None and is_one_conversation:
            return session_digest(session.encode("utf-8", "surrogatepass"), self.tenant()), BY_SESSION
        if parsed.messages_end:
            return prompt_digest(http_request.body, parsed.messages_start, parsed.messages_end), BY_PROMPT
        return text_digest(parsed, http_request.body), BY_PROMPT

    def prompt_tokens(self) -> int:
        """Returns the tokens of the body, by its text and its other parts.

        Why the whole body: tools and schemas are a part of the prompt.
        """
        body = self._http_request.body
        # A scanned chat has text only.
        return len(body) // BYTES_PER_TOKEN if self._parsed.decoded_fields is None else estimated_tokens(body)

    def answer_limit(self) -> int | None:
        """Returns the client's limit of the answer in tokens; None without one."""
        limit = self._parsed.max_tokens
        return None if limit is None else int(limit)


def fallback_entry(decision: RouteDecision, fleet: Fleet) -> ModelEntry:
    """Returns the model of a request's last fallback.

    Raises RouteWithoutTarget if the model has left the fleet.
    """
    key = decision.steps[-1].model
    model = fleet.models.get(key)
    if model is None:
        raise RouteWithoutTarget("model: the fallback that this route has chosen is not served", param="model")
    return ModelEntry(key, model)


def choose_entry(
    routes: RouteTable,
    http_request: HttpRequest,
    parsed: ModelRequest,
    fleet: Fleet,
    names: dict[str, ModelEntry] | None = None,
) -> tuple[ModelEntry, RouteDecision] | None:
    """Returns the model that a route chooses, and how; None if the request names no route.

    names: the fleet's `client_names`, if they are known.
    Raises RouteWithoutTarget if the route has none, or the target is not served.
    """
    decision = routes.resolve(parsed.model_name, HttpRequestFacts(http_request, parsed))
    if decision is None:
        return None
    if decision.target is None:
        raise RouteWithoutTarget("model: no target of this route has a weight above 0", param="model")
    entry = None if names is None else names.get(decision.target)
    if entry is not None and entry.key == decision.target:  # else the name is of another model or an adapter
        return entry, decision
    model = fleet.models.get(decision.target)
    if model is None:
        raise _not_served(decision)
    return ModelEntry(decision.target, model), decision


def _not_served(decision: RouteDecision) -> RouteWithoutTarget:
    error = RouteWithoutTarget("model: the target that this route has chosen is not served", param="model")
    error.route = decision
    return error


def takes_canary(request: ModelRequest, routed: RouteRequest, weight: int) -> bool:
    """Returns whether the canary serves the conversation of a request.

    weight: percentage of the conversations that it serves.
    """
    seed = xxhash.xxh3_64_intdigest(request.model_key.encode(), _SEED)
    return is_drawn(_conversation(request, routed), seed, weight)


def _conversation(request: ModelRequest, routed: RouteRequest) -> bytes:
    if routed.session_hash is not None:
        return str(routed.session_hash).encode()
    if request.messages_end:
        return prompt_digest(request.client_body, request.messages_start, request.messages_end)
    return text_digest(request, request.body)


def apply_rewrite(request: ModelRequest, decision: RouteDecision) -> None:
    """Sets the parameters of the route that has chosen the model of a request.

    Changes the body for the engine, and what the gateway itself reads of these parameters.
    """
    form = request.dialect.form
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
    fields: Any = scanned_fields(request) if scanned else request.fields
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
    request.sequences = max([1, *[int(count or 1) for count in answers]])
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

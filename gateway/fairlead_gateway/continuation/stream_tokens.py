"""Streams that another engine continues from their token ids.

Where engines send token ids, the other engine gets those of the prompt and of what the client has.
So it continues exactly there: sampled tokens come from the same distribution, and greedy ones are
those of an unbroken stream. A completion takes the ids as its prompt. A chat takes them in
`kv_transfer_params`, in place of the rendered prompt. The engine's parsers of reasoning and tool
calls then see the rest of the answer.

Grammars, stop strings, forbidden words and penalties count what was generated, and cannot be handed
over. Such streams are replayed (`stream_replay`). What neither way can give ends the stream with an
error, unless the client has nothing yet (`refusal`).
"""

import re
from typing import Any, Final

import msgspec
from xxhash import xxh3_64_intdigest

from fairlead_gateway.continuation.continued_stream import (
    CONTINUED_AT,
    MESSAGES_STUB,
    TOKEN_ENGINES,
    ContinuedStream,
    Queries,
    decoded_text,
    is_used_up,
    limits_left,
    next_seed,
)
from fairlead_gateway.continuation.sent_tokens import MEMORY, SentTokens
from fairlead_gateway.dialects.chat import CHAT, ChatRequest
from fairlead_gateway.dialects.completions import COMPLETIONS, CompletionRequest
from fairlead_gateway.dialects.schemas import GenerationFields, has_value
from fairlead_gateway.dialects.table import BODY_DECODERS
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.openai.json_edit import contains_any, is_any_enabled, prepend_text, set_members
from fairlead_gateway.upstream.event_fields import (
    decode_object,
    encode_event,
    is_count,
    is_opening,
    only_choice,
    split_events,
)
from fairlead_gateway.upstream.stream_record import StreamRecord
from fairlead_gateway.upstream.usage import Usage

_ASKED: Final = b'"return_token_ids":true'
_ASKED_FIELD: Final = b'"return_token_ids"'
_STUB: Final = {ChatRequest: ("messages", MESSAGES_STUB), CompletionRequest: ("prompt", b'"-"')}
_TEXT_FORMAT: Final = re.compile(rb'\s*\{\s*"type"\s*:\s*"text"\s*\}\s*')
_MEDIA: Final = (b'"image_url"', b'"input_audio"', b'"audio_url"', b'"video_url"', b'"file"', b'"image_embeds"')
REFUSED_NAMES: Final = (
    ((b'"use_beam_search"',), "several-choices"),
    ((b'"guided_json"', b'"guided_regex"', b'"guided_choice"', b'"guided_grammar"'), "grammar"),
    ((b'"bad_words"',), "bad-words"),
    ((b'"echo"',), "echo"),
    ((b'"thinking_token_budget"',), "reasoning-budget"),
    ((b'"kv_transfer_params"',), "kv-transfer"),
)
"""Fields that are no attribute of a request, with the reason of each."""

REPLAYED: Final = frozenset({"grammar", "stop-strings", "penalties", "bad-words", "reasoning-budget", "logprobs"})
"""Reasons that a replay avoids: engines count such fields from the start of a request."""

_PENALTY: Final = b'_penalty"'
_MAX_SEED: Final = (1 << 53) - 1
"""Numbers that every JSON parser reads exactly."""
_CONTEXT_TOKENS: Final = 8
"""More than the parts of any character."""
_MAX_UNCLEAR_TOKENS: Final = 16


def refused_fields(fields: GenerationFields, body: bytes) -> list[str]:
    """Returns why no engine can go on from tokens with these fields, in one word each.

    body: it may lack its prompt.
    """
    reasons = [reason for names, reason in REFUSED_NAMES if is_any_enabled(names, body)] if body else []
    if fields.stop is not msgspec.UNSET and has_value(fields.stop):
        reasons.append("stop-strings")
    if fields.frequency_penalty or fields.presence_penalty:
        reasons.append("penalties")
    if fields.prompt_logprobs is not None:
        reasons.append("prompt-logprobs")
    if fields.structured_outputs is not msgspec.UNSET and has_value(fields.structured_outputs):
        reasons.append("grammar")
    if fields.response_format is not msgspec.UNSET and not _is_text(fields.response_format):
        reasons.append("grammar")
    if isinstance(fields, ChatRequest) and fields.tool_choice not in (None, "auto", "none"):
        reasons.append("grammar")
    if isinstance(fields, CompletionRequest):
        if fields.logprobs is not None:
            reasons.append("logprobs")  # their offsets count the text that the client has
        if fields.suffix:
            reasons.append("suffix")
        if (fields.best_of or 1) > 1:
            reasons.append("several-choices")
    return reasons


def asks_for_tokens(request: ModelRequest, engine: str) -> bool:
    """Whether the gateway asks this kind of engine for the token ids of a stream.

    Not of one that echoes its prompt: vLLM leaves the echo out if it sends ids.
    """
    return (
        request.stream
        and not request.without_tokens
        and request.entry.resumes
        and engine in TOKEN_ENGINES
        and request.sequences == 1
        and request.prompts == 1
        and request.dialect in (CHAT, COMPLETIONS)
        and not (isinstance(request.decoded_fields, CompletionRequest) and request.decoded_fields.echo)
    )


def body_with_tokens(request: ModelRequest, body: bytes) -> tuple[bytes, bool]:
    """Returns a body that asks for token ids, and whether they are taken out of the answer.

    A client that has asked for them gets them; one that has declined them is not overruled.
    """
    if request.decoded_fields is None or body.find(_ASKED_FIELD) < 0:
        return prepend_text(body, _ASKED), True
    return body, False


def needs_replay(request: ModelRequest) -> bool:
    """Whether a stream whose tokens are asked for can go on by a replay only."""
    is_scanned = request.decoded_fields is None and request.parameters is None
    if is_scanned and request.around_prompt().find(_PENALTY) < 0:
        return False  # the only such fields of a scanned chat are penalties
    fields = request.fields
    if not isinstance(fields, GenerationFields):
        return False
    reasons = refused_fields(fields, request.body if _may_have_names(request, fields) else b"")
    return bool(reasons) and REPLAYED.issuperset(reasons) and not has_media(request)


def _may_have_names(request: ModelRequest, fields: GenerationFields) -> bool:
    """Whether a body may have fields that are known by their names only."""
    if fields.is_listed and request.dialect is CHAT:
        return False
    around = request.around_prompt()
    return not request.messages_end or any(around.find(name) >= 0 for names, _ in REFUSED_NAMES for name in names)


def body_with_seed(request: ModelRequest, body: bytes, request_id: str) -> bytes:
    """Returns the body with a seed if its answer could not be repeated without one.

    request_id: the gateway's, which has random digits; each attempt has the same.
    """
    fields = request.fields
    assert isinstance(fields, GenerationFields)
    if fields.seed is not None or fields.temperature == 0:
        return body
    return set_members(body, {"seed": b"%d" % (xxh3_64_intdigest(request_id.encode()) & _MAX_SEED)})


class StreamTokens(ContinuedStream):
    """A stream that another engine can continue from its tokens.

    request: of the client; its body may be released from now on.
    tokens: those that the client has; their head has the names that the client knows.
    """

    def __init__(self, request: ModelRequest, tokens: SentTokens) -> None:
        super().__init__()
        self.tokens = tokens
        self._kind = request.dialect.body_type
        self._has_media = has_media(request)
        self._is_marked = False
        self._names: dict[str, Any] = {}
        name, stub = _STUB[self._kind]
        body, start, end = request.body, request.messages_start, request.messages_end
        if end:
            text = request.client_body[start - 1 : end + 1]
            at = len(body) - len(request.client_body) + start - 1  # unless a member behind it was changed
            if not body.startswith(text, at):
                at = body.find(text)
            body = body[:at] + stub + body[at + len(text) :]
        else:
            body = set_members(body, {name: stub})
        self._has_tools = body.find(b'"tools"') >= 0
        tokens.keep_body(body)

    @property
    def reader(self) -> StreamRecord | None:
        return self.tokens

    @property
    def generated(self) -> int:
        return self.tokens.generated

    @property
    def prompt_tokens(self) -> int:
        return self.tokens.prompt_tokens

    @property
    def earlier(self) -> int:
        return self.tokens.earlier

    @property
    def computed(self) -> int:
        return len(self.tokens.ids) - self.tokens.prompt_tokens

    def release(self) -> None:
        self.tokens.release()

    @property
    def is_whole(self) -> bool:
        return self.tokens.is_finished or is_used_up(limits_left(self._fields(), self.tokens.generated))

    def refusal(self) -> str:
        tokens = self.tokens
        if tokens.problem or not tokens.body:
            return tokens.problem or MEMORY
        if self._has_media:
            return "media"
        reasons = refused_fields(self._fields(), tokens.body) if tokens.generated else []
        return next((reason for reason in reasons if reason not in REPLAYED), reasons[0] if reasons else "")

    def next_body(self) -> bytes:
        tokens, fields = self.tokens, self._fields()
        tokens.rewind()
        self.start(tokens)
        generated = tokens.generated
        changes = {name: b"%d" % left for name, left in limits_left(fields, generated).items()}
        if fields.min_tokens:
            changes["min_tokens"] = b"%d" % max(0, fields.min_tokens - generated)
        if fields.seed is not None and generated:
            changes["seed"] = next_seed(fields.seed, generated)
        ids = msgspec.json.encode(tokens.ids.tolist())
        if self._kind is ChatRequest:
            changes["kv_transfer_params"] = b'{"prompt_token_ids":' + ids + b"}"
        else:
            changes["prompt"] = ids
        if tokens.body.find(_ASKED_FIELD) < 0:
            changes["return_token_ids"] = b"true"
        return set_members(tokens.body, changes)

    def queries(self, engine: str) -> Queries:
        """Asks an engine to which of its last tokens the client's text belongs.

        Why: the last tokens that came with text may belong to what follows it.
        """
        tokens = self.tokens
        if not tokens.last or not (self._has_tools or tokens.shown - tokens.last_at > 1):
            return ""
        text, start = self._last_text(), max(0, tokens.last_at - _CONTEXT_TOKENS)
        for end in range(tokens.shown, max(tokens.last_at, tokens.shown - _MAX_UNCLEAR_TOKENS), -1):
            body = b'{"tokens":' + msgspec.json.encode(tokens.ids[start:end].tolist()) + b"}"
            answer = yield "/detokenize", body
            if text and decoded_text(answer).endswith(text):
                tokens.settle(end)
                return ""
        tokens.settle(None)
        return tokens.problem

    def read_problem(self, usage: Usage | None) -> str:
        return self.tokens.problem

    def start(self, sent: SentTokens) -> None:
        """Prepares the events of another engine.

        sent: what the client has.
        """
        self._is_marked = False
        self._names = sent.names()
        self.continued_at = sent.generated

    def splice(self, events: list[bytes]) -> list[bytes]:
        spliced: list[bytes] = []
        for event, fields in split_events(events):
            if fields is None:
                spliced.append(event)
            elif not is_opening(fields):
                spliced.append(self.as_own(fields))
        return spliced

    def closing(self, *, with_usage: bool) -> list[bytes]:
        tokens = self.tokens
        part: dict[str, Any] = {"text": ""} if self._kind is CompletionRequest else {"delta": {}}
        choice = {"index": 0} | part | {"logprobs": None, "finish_reason": "length", "stop_reason": None}
        events = [encode_event(tokens.names() | {"choices": [choice]})]
        return [*events, *([tokens.usage_event(tokens.generated)] if with_usage else []), b"data: [DONE]\n\n"]

    def usage(self, reported: Usage | None) -> Usage | None:
        tokens = self.tokens
        if reported is None or reported.completion_tokens is None:
            return reported
        cached = reported.cached_tokens
        cached = None if cached is None else min(cached, tokens.prompt_tokens)
        return Usage(tokens.prompt_tokens, reported.completion_tokens + tokens.earlier, cached)

    def as_own(self, fields: dict[str, Any]) -> bytes:
        """Returns an event with the names of the first engine and the counts of the whole."""
        tokens = self.tokens
        fields.update(self._names)
        usage = fields.get("usage")
        if isinstance(usage, dict) and is_count(usage.get("completion_tokens")):
            usage["completion_tokens"] += tokens.earlier
            usage["prompt_tokens"] = tokens.prompt_tokens
            usage["total_tokens"] = tokens.prompt_tokens + usage["completion_tokens"]
            if tokens.earlier:
                usage.pop("completion_tokens_details", None)  # of the last engine alone
            details = usage.get("prompt_tokens_details")
            if isinstance(details, dict) and is_count(details.get("cached_tokens")):
                details["cached_tokens"] = min(details["cached_tokens"], tokens.prompt_tokens)
        for choice in choices if isinstance(choices := fields.get("choices"), list) else ():
            if isinstance(choice, dict) and choice.get("prompt_token_ids"):
                choice["prompt_token_ids"] = None  # the client has those of the prompt
        if not self._is_marked:
            self._is_marked = True
            fields[CONTINUED_AT] = self.continued_at
        return encode_event(fields)

    def _last_text(self) -> str:
        """Returns the text of the last event that has some; of reasoning only if none follows."""
        tokens = self.tokens
        choice = only_choice(decode_object(tokens.last[tokens.last.find(b"{") :]) or {}) or {}
        delta = choice.get("delta")
        holder = delta if isinstance(delta, dict) else choice
        parts = [holder.get(name) for name in ("content", "text", "reasoning", "reasoning_content")]
        return next((part for part in parts if part and isinstance(part, str)), "")

    def _fields(self) -> GenerationFields:
        fields: GenerationFields = BODY_DECODERS[self._kind].decode(self.tokens.body)
        return fields


def has_media(request: ModelRequest) -> bool:
    """Whether the messages of a chat have a part that is not text."""
    if request.decoded_fields is None:  # a scanned chat, which has text only
        return False
    return contains_any(request.messages(), _MEDIA)


def _is_text(response_format: msgspec.Raw) -> bool:
    form = bytes(response_format)
    return form == b"null" or _TEXT_FORMAT.fullmatch(form) is not None

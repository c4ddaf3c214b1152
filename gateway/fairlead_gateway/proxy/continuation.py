"""The content of continued streams: the request to another engine, and the response that the client
gets.

Where engines send token ids, the other engine gets those of the prompt and of what the client has.
So it continues exactly there: sampled tokens come from the same distribution, and greedy ones are
those of an unbroken stream. A completion takes the ids as its prompt. A chat takes them in
`kv_transfer_params`, in place of the rendered prompt. The engine's parsers of reasoning and tool
calls then see the rest of the answer. `StreamTokens` is such a stream.

Grammars, stop strings, forbidden words and penalties count what was generated, and cannot be handed
over. Such streams are replayed (`stream_replay`). What neither way can give ends the stream with an
error, unless the client has nothing yet (`refusal`).

Other engines get the prompt with the text that the client has already. In a chat that is an
unfinished last message (`continue_final_message`); in a completion it follows the prompt.

Only greedy requests and requests with a seed are resumed. For a greedy request the text is what the
first engine would have generated. With a seed the text may be another one, which is as good.

A request is not resumed if more than the text decides what comes next, for example if it has:

- several choices
- tools
- grammars or stop strings
- penalties
- log probabilities
- prompts of token ids

The resumed response keeps the id, model and time of the first one. The role is sent once. The usage
has the prompt tokens of the request and the output tokens of both engines. Sent tokens are counted
as one per event; the count is low if an engine puts several into one event.
"""

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from fairlead.engines.facts import kinds_with
from fairlead_gateway.dialects.chat import CHAT, ChatRequest
from fairlead_gateway.dialects.completions import COMPLETIONS, CompletionRequest
from fairlead_gateway.dialects.schemas import CommonFields, GenerationFields, has_value
from fairlead_gateway.dialects.table import BODY_DECODERS
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.openai.json_edit import contains_any, is_any_enabled, prepend_text, set_members
from fairlead_gateway.upstream.sent_tokens import MEMORY, SHORT_BYTES, SentTokens, TokenMemory
from fairlead_gateway.upstream.usage import Usage

_EVENTS_PER_SLICE = 64
_MAX_COUNT = 1 << 53
_KNOWN_DELTA_FIELDS = frozenset(
    {"role", "content", "refusal", "function_call", "tool_calls", "reasoning", "reasoning_content"}
)

TOKEN_ENGINES: Final = kinds_with(lambda facts: facts.sends_token_ids)
"""The engines that send token ids on request, and read them."""
CONTINUED_AT: Final = "fairlead_continued_at"
PROGRESS_TOKENS: Final = 8
MAX_BREAKS: Final = 3
"""Limit: engines that may end on one stream, if each has generated `PROGRESS_TOKENS` before."""
_ASKED: Final = b'"return_token_ids":true'
_ASKED_FIELD: Final = b'"return_token_ids"'
MESSAGES_STUB: Final = b'[{"role":"user","content":"-"}]'
"""In place of messages, whose rendering is replaced by token ids."""
_STUB: Final = {ChatRequest: ("messages", MESSAGES_STUB), CompletionRequest: ("prompt", b'"-"')}
_LIMITS: Final = ("max_tokens", "max_completion_tokens")
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

_CONTEXT_TOKENS: Final = 8
"""More than the parts of any character."""
_MAX_SEED: Final = (1 << 63) - 1


class SentText:
    """The part of a stream that the client has, kept as bytes and parsed only if needed.

    memory: shared with the other streams; None: this stream is the only one.
    text, tokens: set when all events are parsed.
    shared_fields: the fields that all events of a stream share.
    """

    def __init__(self, max_bytes: int, memory: TokenMemory | None = None) -> None:
        self._max_bytes = max_bytes
        self._memory = TokenMemory(max_bytes) if memory is None else memory
        self._events: list[bytes] = []
        self._size = 0
        self._is_kept = True
        self.text = ""
        self.tokens = 0
        self.shared_fields: dict[str, Any] = {}

    def add(self, events: Iterable[bytes]) -> None:
        """Adds events that go to the client.

        Beyond `max_bytes` in sum, or beyond the shared memory, the stream cannot be resumed. Then
        nothing of it is kept.
        """
        if not self._is_kept:
            return
        memory = self._memory
        for event in events:
            size = len(event)
            self._size += size
            memory.used_bytes += size
            self._events.append(event)
        if self._size > self._max_bytes or memory.is_full:
            self.release()

    def release(self) -> None:
        self._memory.used_bytes -= self._size
        self._events, self._size, self._is_kept = [], 0, False

    def parse_slices(self) -> Iterator[bool]:
        """Parses the events in slices. Yields True after each slice. Yields False and ends if an
        event is not text alone, or if the events are incomplete.
        """
        if not self._is_kept:
            yield False
            return
        texts: list[str] = []
        try:
            for number, fields in enumerate(_decode_events(b"".join(self._events)), 1):
                self.shared_fields = self.shared_fields or {
                    name: fields[name]
                    for name in ("id", "created", "model")
                    if name in fields and len(str(fields[name])) <= SHORT_BYTES
                }
                choices = fields.get("choices")
                if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
                    yield False
                    return
                text = _event_text(choices[0])
                if text is None or choices[0].get("finish_reason") is not None:
                    yield False
                    return
                texts.append(text)
                self.tokens += bool(text)
                if number % _EVENTS_PER_SLICE == 0:
                    yield True
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            yield False
            return
        self.text = "".join(texts)
        yield bool(self.shared_fields)


class ContinuedStream:
    """A broken stream: what the client has of it, and how another engine continues it.

    Why a base class and not a Protocol: compiled, its methods are called directly.
    """

    @property
    @abstractmethod
    def generated(self) -> int:
        """The number of tokens that the client has of the answer."""

    @abstractmethod
    def refusal(self) -> str:
        """Returns why no engine can continue the stream, in one word; empty if one can."""

    @property
    @abstractmethod
    def is_whole(self) -> bool:
        """Whether nothing is left to generate."""

    @property
    def is_replayed(self) -> bool:
        return False

    @abstractmethod
    def next_body(self) -> bytes:
        """Returns the body for another engine. The stream must not be whole."""

    @abstractmethod
    def splice(self, events: list[bytes]) -> list[bytes]:
        """Returns another engine's events as part of the stream that the client has."""

    @abstractmethod
    def usage(self, reported: Usage | None) -> Usage | None:
        """Returns the usage of the whole answer from that of the last engine."""

    @abstractmethod
    def closing(self, *, with_usage: bool) -> list[bytes]:
        """Returns the events that a stream lacks whose tokens are all there; empty if its usage is
        not known.

        with_usage: the client has asked for the usage.
        """


class DetachedStream(ContinuedStream):
    """A stream that is relayed without an asyncio task, and that the gateway may move.

    continuations: how often another instance has continued it; `moves` of them were planned.
    continued_at: how many tokens the client had when the latest instance took over.
    events: those of the instances before the present one.
    """

    def __init__(self) -> None:
        self.continuations = self.continued_at = self.events = self.moves = 0

    @property
    @abstractmethod
    def prompt_tokens(self) -> int:
        """The number of tokens of the prompt; 0 if that is not known."""

    @property
    @abstractmethod
    def earlier(self) -> int:
        """The number of the answer's tokens that engines before the present one have generated."""

    @property
    @abstractmethod
    def computed(self) -> int:
        """The number of the answer's tokens by now, with those that are held."""

    @property
    def may_move(self) -> bool:
        return not self.is_replayed

    @property
    def failure(self) -> bytes:
        """The error event of an engine that the client does not have; empty without one."""
        return b""

    def next_number(self, number: int) -> int:
        return number

    @abstractmethod
    def release(self) -> None:
        """Drops what is kept. May be called twice."""

    @property
    def has_progressed(self) -> bool:
        """Whether the stream may go on although two engines have ended on its request.

        Each has then generated tokens before. A request that ends engines does so at once.
        """
        here = self.generated - self.earlier
        return here >= PROGRESS_TOKENS and self.continuations - self.moves < MAX_BREAKS


class StreamText(ContinuedStream):
    """A stream of text that is continued once, from what the client has as text.

    sent: parsed before the other methods are called.
    """

    __slots__ = ("_request", "has_broken", "sent")

    def __init__(self, request: ModelRequest, sent: SentText) -> None:
        self._request = request
        self.sent = sent
        self.has_broken = False

    @property
    def generated(self) -> int:
        return self.sent.tokens

    def refusal(self) -> str:
        return "second-break" if self.has_broken else ""

    @property
    def is_whole(self) -> bool:
        return _is_used_up(_limits_left(self._request.fields, self.sent.tokens))

    def next_body(self) -> bytes:
        self.has_broken = True
        body = resume_body(self._request, self.sent)
        assert body is not None
        return body

    def splice(self, events: list[bytes]) -> list[bytes]:
        return splice_events(events, self.sent)

    def usage(self, reported: Usage | None) -> Usage | None:
        return total_usage(reported, self.sent)

    def closing(self, *, with_usage: bool) -> list[bytes]:
        return []


def resume_body(request: ModelRequest, sent: SentText) -> bytes | None:
    """Returns the body for another engine; None if nothing is left to generate."""
    fields = request.fields
    left = _limits_left(fields, sent.tokens)
    if _is_used_up(left):
        return None
    changes = {name: b"%d" % tokens for name, tokens in left.items()}
    if isinstance(fields, CompletionRequest):
        prompt = msgspec.json.decode(fields.prompt, type=str)
        changes["prompt"] = msgspec.json.encode(prompt + sent.text)
    elif isinstance(fields, ChatRequest) and sent.text:
        message = msgspec.json.encode({"role": "assistant", "content": sent.text})
        changes["messages"] = request.messages().rstrip()[:-1] + b"," + message + b"]"
        changes["continue_final_message"] = b"true"
        changes["add_generation_prompt"] = b"false"
    return set_members(request.body, changes)


def splice_events(events: Iterable[bytes], sent: SentText) -> list[bytes]:
    """Returns another engine's events as part of the stream that the client has."""
    spliced: list[bytes] = []
    for event, fields in split_events(events):
        if fields is None:
            spliced.append(event)
            continue
        fields.update(sent.shared_fields)
        usage = fields.get("usage")
        if isinstance(usage, dict) and is_count(usage.get("completion_tokens")):
            usage["completion_tokens"] += sent.tokens
            if is_count(usage.get("prompt_tokens")):
                usage["prompt_tokens"] = max(0, usage["prompt_tokens"] - sent.tokens)
        choice = only_choice(fields)
        if choice is not None:
            delta = choice.get("delta")
            is_role_only = isinstance(delta, dict) and delta.pop("role", None) is not None and not delta.get("content")
            if is_role_only and choice.get("finish_reason") is None:
                continue
        spliced.append(encode_event(fields))
    return spliced


def total_usage(usage: Usage | None, sent: SentText) -> Usage | None:
    """Returns the usage of the whole response from that of the engine that resumed it.

    Returns `usage` itself if it has no count of output tokens.
    """
    if usage is None or usage.completion_tokens is None:
        return usage
    prompt = None if usage.prompt_tokens is None else max(0, usage.prompt_tokens - sent.tokens)
    return Usage(prompt, usage.completion_tokens + sent.tokens, usage.cached_tokens)


def _limits_left(fields: CommonFields, generated: int) -> dict[str, int]:
    limits = ((name, getattr(fields, name, None)) for name in _LIMITS)
    return {name: limit - generated for name, limit in limits if limit is not None}


def _is_used_up(limits_left: dict[str, int]) -> bool:
    return any(left <= 0 for left in limits_left.values())


def split_events(events: Iterable[bytes]) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yields each event with its fields; None for the end, a comment or garbage."""
    for event in b"".join(events).replace(b"\r\n", b"\n").split(b"\n\n"):
        if event:
            data = event[5:].strip() if event.startswith(b"data:") else b""
            yield event + b"\n\n", decode_object(data) if data[:1] == b"{" else None


def encode_event(fields: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def _decode_events(stream: bytes) -> Iterable[dict[str, Any]]:
    for line in stream.splitlines():
        data = line[5:].strip() if line.startswith(b"data:") else b""
        if data[:1] == b"{":
            yield msgspec.json.decode(data, type=dict)


def is_count(value: object) -> bool:
    """Whether a value can be a number of tokens, or a token.

    Why a bound: a number of more than 4,300 digits cannot be written as text.
    """
    return isinstance(value, int) and 0 <= value <= _MAX_COUNT


def _event_text(choice: dict[str, Any]) -> str | None:
    """Returns the text of an event; None if the event contains more than text."""
    if "delta" not in choice:
        text = choice.get("text")
        return text if isinstance(text, str) else None
    delta = choice["delta"]
    if not isinstance(delta, dict):
        return None
    if delta.keys() - _KNOWN_DELTA_FIELDS or any(delta.get(name) for name in _KNOWN_DELTA_FIELDS - {"role", "content"}):
        return None
    content = delta.get("content")
    return content if isinstance(content, str) else "" if content is None else None


def refused_fields(fields: GenerationFields, body: bytes) -> list[str]:
    """Returns why no engine can go on from tokens with these fields, in one word each.

    body: it may lack its prompt.
    """
    reasons = [reason for names, reason in REFUSED_NAMES if is_any_enabled(names, body)]
    if has_value(fields.stop):
        reasons.append("stop-strings")
    if fields.frequency_penalty or fields.presence_penalty:
        reasons.append("penalties")
    if fields.prompt_logprobs is not None:
        reasons.append("prompt-logprobs")
    if has_value(fields.structured_outputs) or not _is_text(fields.response_format):
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


class StreamTokens(DetachedStream):
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
            text = memoryview(request.client_body)[start - 1 : end + 1]
            at = body.find(text)
            body = body[:at] + stub + body[at + len(text) :]
        else:
            body = set_members(body, {name: stub})
        self._has_tools = body.find(b'"tools"') >= 0
        tokens.keep_body(body)

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
        return self.tokens.is_finished or _is_used_up(_limits_left(self._fields(), self.tokens.generated))

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
        changes = {name: b"%d" % left for name, left in _limits_left(fields, generated).items()}
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

    @property
    def is_unclear(self) -> bool:
        """Whether the last tokens that came with text may belong to what follows it."""
        tokens = self.tokens
        return bool(tokens.last) and (self._has_tools or tokens.shown - tokens.last_at > 1)

    def last_text(self) -> str:
        """Returns the text of the last event that has some; of reasoning only if none follows."""
        tokens = self.tokens
        choice = only_choice(decode_object(tokens.last[tokens.last.find(b"{") :]) or {}) or {}
        delta = choice.get("delta")
        holder = delta if isinstance(delta, dict) else choice
        parts = [holder.get(name) for name in ("content", "text", "reasoning", "reasoning_content")]
        return next((part for part in parts if part and isinstance(part, str)), "")

    def tokens_before(self, end: int) -> bytes:
        """Returns the body that asks an engine for the text of the last tokens before `end`."""
        tokens = self.tokens
        start = max(0, tokens.last_at - _CONTEXT_TOKENS)
        return b'{"tokens":' + msgspec.json.encode(tokens.ids[start:end].tolist()) + b"}"

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

    def _fields(self) -> GenerationFields:
        fields: GenerationFields = BODY_DECODERS[self._kind].decode(self.tokens.body)
        return fields


def decode_object(data: bytes) -> dict[str, Any] | None:
    """Returns a JSON object; None if the data is none."""
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def next_seed(seed: int, generated: int) -> bytes:
    """Returns the seed of an engine that goes on behind some tokens, as JSON text.

    Why another one: an engine would draw the tokens of the beginning again.
    """
    return b"%d" % ((seed + generated) & _MAX_SEED)


def decoded_text(body: bytes) -> str:
    """Returns the text in an engine's answer to `/detokenize`; empty if there is none."""
    text = (decode_object(body) or {}).get("prompt")
    return text if isinstance(text, str) else ""


def has_media(request: ModelRequest) -> bool:
    """Whether the messages of a chat have a part that is not text."""
    if request.decoded_fields is None:  # a scanned chat, which has text only
        return False
    return contains_any(request.messages(), _MEDIA)


def _is_text(response_format: msgspec.Raw | msgspec.UnsetType) -> bool:
    """Whether an answer may be any text."""
    if response_format is msgspec.UNSET or bytes(response_format) == b"null":
        return True
    return _TEXT_FORMAT.fullmatch(bytes(response_format)) is not None


def only_choice(fields: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the first choice in an event; None if there is none."""
    choices = fields.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def is_opening(fields: dict[str, Any]) -> bool:
    """Whether an event opens an answer: it names the role, and nothing more."""
    choices = fields.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return False
    delta = choices[0].get("delta")
    return isinstance(delta, dict) and "role" in delta and not delta.get("content")

"""Streams of text that another engine continues once, from the text that the client has.

Other engines get the prompt with that text. In a chat it is an unfinished last message
(`continue_final_message`); in a completion it follows the prompt.

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

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from fairlead_gateway.continuation.continued_stream import ContinuedStream, is_used_up, limits_left
from fairlead_gateway.continuation.sent_tokens import TokenMemory
from fairlead_gateway.dialects.chat import ChatRequest
from fairlead_gateway.dialects.completions import CompletionRequest
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.openai.json_edit import set_members
from fairlead_gateway.upstream.event_fields import encode_event, is_count, only_choice, split_events
from fairlead_gateway.upstream.stream_record import SHORT_BYTES
from fairlead_gateway.upstream.usage import Usage

_EVENTS_PER_SLICE: Final = 64
_KNOWN_DELTA_FIELDS: Final = frozenset(
    {"role", "content", "refusal", "function_call", "tool_calls", "reasoning", "reasoning_content"}
)


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


class StreamText(ContinuedStream):
    """A stream of text that is continued once, from what the client has as text.

    sent: parsed before the other methods are called.
    """

    def __init__(self, request: ModelRequest, sent: SentText) -> None:
        super().__init__()
        self.needs_task = True
        self._request = request
        self.sent = sent
        self.has_broken = False

    @property
    def generated(self) -> int:
        return self.sent.tokens

    @property
    def has_progressed(self) -> bool:
        return False

    def parse_slices(self) -> Iterator[bool]:
        return self.sent.parse_slices()

    def refusal(self) -> str:
        return "second-break" if self.has_broken else ""

    @property
    def is_whole(self) -> bool:
        return is_used_up(limits_left(self._request.fields, self.sent.tokens))

    def next_body(self) -> bytes:
        self.has_broken = True
        body = resume_body(self._request, self.sent)
        assert body is not None
        return body

    def splice(self, events: list[bytes]) -> list[bytes]:
        return splice_events(events, self.sent)

    def usage(self, reported: Usage | None) -> Usage | None:
        return total_usage(reported, self.sent)

    def release(self) -> None:
        self.sent.release()


def resume_body(request: ModelRequest, sent: SentText) -> bytes | None:
    """Returns the body for another engine; None if nothing is left to generate."""
    fields = request.fields
    left = limits_left(fields, sent.tokens)
    if is_used_up(left):
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


def _decode_events(stream: bytes) -> Iterable[dict[str, Any]]:
    for line in stream.splitlines():
        data = line[5:].strip() if line.startswith(b"data:") else b""
        if data[:1] == b"{":
            yield msgspec.json.decode(data, type=dict)


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

"""Continuing a stream that broke: which request allows it, what another engine is asked, and how
its answer fits on.

The other engine gets the prompt with everything that the client has already: a chat's unfinished
answer as its last message (``continue_final_message``), a completion's text behind its prompt. That
gives what the first engine would have said when the request is greedy, and an equally good answer
when it has a seed. Not where more than text decides what comes next: several choices, tools,
grammars, stop strings, penalties, log-probabilities, or a prompt of token ids.

What comes back is made part of the same answer: the same id, model and time, no second role, the
usage of the whole. Tokens already sent are counted by their events, one each; an engine that put
several into one event makes that count small.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from fairlead_gateway.worker.openai import schemas
from fairlead_gateway.worker.openai.json_edit import set_members
from fairlead_gateway.worker.openai.request import ModelRequest
from fairlead_gateway.worker.openai.schemas import ChatRequest, CompletionRequest, GenerationFields, StreamOptions
from fairlead_gateway.worker.upstream.usage import Usage

_UNRESUMABLE_FIELDS = (b'"continue_final_message"', b'"return_token_ids"', b'"use_beam_search"')
_CONTINUOUS_USAGE_KEY = b"continuous_usage_stats"
_KNOWN_DELTA_FIELDS = frozenset(
    {"role", "content", "refusal", "function_call", "tool_calls", "reasoning", "reasoning_content"}
)


def can_resume(request: ModelRequest) -> bool:
    """Whether this request may go on elsewhere in the middle of its answer."""
    parsed = request.fields
    if not isinstance(parsed, GenerationFields) or not request.stream:
        return False
    steady = parsed.temperature == 0 or parsed.seed is not None
    one = (parsed.n or 1) == 1
    plain = not schemas.has_value(parsed.stop) and not parsed.min_tokens and not schemas.has_value(parsed.logit_bias)
    unpunished = not parsed.frequency_penalty and not parsed.presence_penalty and parsed.repetition_penalty in (None, 1)
    free = not schemas.has_value(parsed.response_format) and not schemas.has_value(parsed.structured_outputs)
    if not (steady and one and plain and unpunished and free and parsed.prompt_logprobs is None):
        return False
    if schemas.is_any_enabled(_UNRESUMABLE_FIELDS, request.body) or _has_continuous_usage(parsed):
        return False
    if isinstance(parsed, ChatRequest):
        return not schemas.has_value(parsed.tools) and not parsed.logprobs
    if isinstance(parsed, CompletionRequest):
        text = bytes(parsed.prompt)[:1] == b'"' and not parsed.echo and not parsed.suffix and parsed.logprobs is None
        return text and (parsed.best_of or 1) == 1
    return False


def _has_continuous_usage(parsed: GenerationFields) -> bool:
    options = b"" if parsed.stream_options is msgspec.UNSET else bytes(parsed.stream_options)
    if _CONTINUOUS_USAGE_KEY not in options:
        return False
    return bool(msgspec.json.decode(options, type=StreamOptions).continuous_usage_stats)


class SentText:
    """What a client has of a stream, kept as bytes and read only when it is needed."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._events: list[bytes] = []
        self._size = 0
        self.text = ""
        self.tokens = 0
        self.shared_fields: dict[str, Any] = {}

    def add(self, events: Iterable[bytes]) -> None:
        """Events on their way to the client."""
        for event in events:
            self._size += len(event)
            if self._size <= self._max_bytes:
                self._events.append(event)

    def parse(self) -> bool:
        """Fill ``text``, ``tokens`` and ``same``; whether that is all that the client has, and
        nothing but text.
        """
        if self._size > self._max_bytes:
            return False
        try:
            objects = list(_decode_events(b"".join(self._events)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        texts: list[str] = []
        for found in objects:
            self.shared_fields = self.shared_fields or {
                name: found[name] for name in ("id", "created", "model") if name in found
            }
            choices = found.get("choices")
            if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
                return False
            said = _event_text(choices[0])
            if said is None or choices[0].get("finish_reason") is not None:
                return False
            texts.append(said)
            self.tokens += bool(said)
        self.text = "".join(texts)
        return bool(self.shared_fields)


def resume_body(request: ModelRequest, sent: SentText) -> bytes | None:
    """The request that another engine gets; None when there is nothing left to say."""
    parsed = request.fields
    changes: dict[str, bytes] = {}
    for name in ("max_tokens", "max_completion_tokens"):
        most = getattr(parsed, name, None)
        if most is not None:
            if most <= sent.tokens:
                return None
            changes[name] = b"%d" % (most - sent.tokens)
    if isinstance(parsed, CompletionRequest):
        prompt = msgspec.json.decode(parsed.prompt, type=str)
        changes["prompt"] = msgspec.json.encode(prompt + sent.text)
    elif isinstance(parsed, ChatRequest) and sent.text:
        message = msgspec.json.encode({"role": "assistant", "content": sent.text})
        changes["messages"] = request.messages().rstrip()[:-1] + b"," + message + b"]"
        changes["continue_final_message"] = b"true"
        changes["add_generation_prompt"] = b"false"
    return set_members(request.body, changes)


def splice_events(events: Iterable[bytes], sent: SentText) -> list[bytes]:
    """Another engine's events as part of the stream that the client has."""
    out: list[bytes] = []
    for event in b"".join(events).replace(b"\r\n", b"\n").split(b"\n\n"):
        data = event[5:].strip() if event.startswith(b"data:") else b""
        if data[:1] != b"{":
            out += [event + b"\n\n"] if event else []
            continue
        try:
            found = msgspec.json.decode(data, type=dict)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            out.append(event + b"\n\n")
            continue
        found.update(sent.shared_fields)
        usage = found.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            usage["completion_tokens"] += sent.tokens
            if isinstance(usage.get("prompt_tokens"), int):
                usage["prompt_tokens"] = max(0, usage["prompt_tokens"] - sent.tokens)
        choices = found.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            delta = choices[0].get("delta")
            opens = isinstance(delta, dict) and delta.pop("role", None) is not None and not delta.get("content")
            if opens and choices[0].get("finish_reason") is None:
                continue
        out.append(b"data: " + msgspec.json.encode(found) + b"\n\n")
    return out


def total_usage(usage: Usage | None, sent: SentText) -> Usage | None:
    """What both engines counted, as one answer."""
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
    """The text of one event; None when there is more in it than text."""
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

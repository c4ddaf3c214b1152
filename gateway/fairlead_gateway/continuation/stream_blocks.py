"""Streams of messages and responses that another engine continues from the text that clients have.

The other engine gets token ids in place of a rendered prompt: those of the prompt, and those of the
answer so far. It says itself which these are (`queries`). Without any text, the request is sent
again as it is.

- The gateway converts the request to a chat, as engines do. It uses the prompt only if it has as
  many tokens as an engine has reported.
- Thoughts stand between marks that only the chat template knows. So the engine renders the thoughts
  and the text, followed by a mark of ours. The tokens between the prompt and our mark are the
  answer so far.

The client's stream keeps its names. Its open part goes on, the places of later blocks are counted
from there, and events with whole texts have both parts. `refusal` names what cannot go on.

Source: docs.anthropic.com/en/api/messages-streaming,
platform.openai.com/docs/api-reference/responses-streaming, and vLLM 0.32.
"""

import re
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from fairlead_gateway.continuation.continued_stream import (
    CONTINUED_AT,
    MESSAGES_STUB,
    TOKEN_ENGINES,
    ContinuedStream,
    Queries,
    decoded_text,
    next_seed,
)
from fairlead_gateway.continuation.sent_blocks import PARTS_ADDED, SentBlocks, has_name
from fairlead_gateway.continuation.sent_tokens import IDS_NOT_READ
from fairlead_gateway.continuation.stream_tokens import refused_fields
from fairlead_gateway.dialects.chat_forms import chat_form
from fairlead_gateway.dialects.messages import MESSAGES, MessagesRequest
from fairlead_gateway.dialects.responses import RESPONSES, ResponsesRequest
from fairlead_gateway.dialects.schemas import GenerationFields
from fairlead_gateway.dialects.table import BODY_DECODERS
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.openai.json_edit import contains_any, set_members
from fairlead_gateway.upstream.event_fields import decode_object, is_count
from fairlead_gateway.upstream.sse import event_data
from fairlead_gateway.upstream.stream_record import SHORT_BYTES, StreamRecord
from fairlead_gateway.upstream.usage import Usage

NO_TOKENIZE: Final = "no-tokenize"
PROMPT_FORM: Final = "prompt-form"
REASONING: Final = "reasoning"
OLD_ENGINE: Final = "old-engine"
TOKENIZE: Final = "/tokenize"
_FIRST_VERSION: Final = (0, 32)
"""The first vLLM whose responses are known to read token ids."""
_VERSION: Final = re.compile(r"v?(\d+)\.(\d+)")
_BUDGET: Final = (b'"budget_tokens"',)
_PROMPT_COUNTS: Final = frozenset(("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"))
_CUT: Final = "~~the answer is cut here~~"
_MAX_REPEATS: Final = 8
"""Limit: events of a next engine that get the text before it; an answer ends with four of them."""

_THOUGHTS: Final = "reasoning"
_NAMES: Final = ("id", "created_at", "model", "max_output_tokens")


def keeps_text(request: ModelRequest, engine: str) -> bool:
    is_known = request.dialect in (MESSAGES, RESPONSES)
    return is_known and request.stream and request.entry.resumes and engine in TOKEN_ENGINES


class StreamBlocks(ContinuedStream):
    """A stream of a message or a response that another engine can continue.

    request: of the client.
    blocks: what the client has, and the body of the request.
    problem: why no engine can continue it, in one word; empty if one can.
    counted_prompt: tokens of the prompt as the first engine has counted them; 0 if it has not.
    """

    def __init__(self, request: ModelRequest, blocks: SentBlocks) -> None:
        super().__init__()
        self.blocks = blocks
        self.problem = ""
        self.counted_prompt = 0
        self._body_type = request.dialect.body_type
        self._kind = request.dialect.name
        self._limit = request.dialect.output_limit
        self._ids: list[int] = []  # of both, until the next engine gets them
        self._prompt = self._answer = 0  # tokens
        self._covered = 0  # deltas whose tokens are in the answer
        self._text = self._thoughts = ""  # at the break
        self._thought_deltas = 0
        self._parts = 0
        self._ends_with_thoughts = False  # the last of these parts
        self._closes = False  # the next engine has not taken up the client's open part
        self._shift = 0  # of the places of its parts
        self._is_marked = False

    @property
    def reader(self) -> StreamRecord | None:
        return self.blocks

    @property
    def prompt_tokens(self) -> int:
        return self._prompt or self.counted_prompt

    @property
    def generated(self) -> int:
        return self._answer + self.blocks.deltas - self._covered

    @property
    def failure(self) -> bytes:
        return self.blocks.failure

    @property
    def may_move(self) -> bool:
        return False  # whether another engine can take it over is known only once that is asked

    def release(self) -> None:
        self.blocks.release()

    @property
    def is_whole(self) -> bool:
        if self.blocks.is_finished:
            return True
        limit: int | None = getattr(self._fields(), self._limit) if self._answer else None
        return limit is not None and self.generated >= limit

    def refusal(self) -> str:
        blocks = self.blocks
        problem = self.problem or blocks.problem
        if problem or blocks.is_finished or not blocks.deltas:
            return problem
        fields = self._fields()
        reasons = refused_fields(fields, blocks.body)
        return reasons[0] if reasons else self._own_refusal(fields)

    def on_break(self, usage: Usage | None) -> None:
        if not self.continuations and usage is not None:
            self.counted_prompt = usage.prompt_tokens or 0

    def queries(self, engine: str) -> Queries:
        if engine not in TOKEN_ENGINES:
            return "engine"
        self.problem = yield from self._find_tokens()
        return self.problem

    def _find_tokens(self) -> Queries:
        """Asks an engine for the tokens of the prompt and of what the client has."""
        self._prompt, self._answer, self._covered = 0, 0, self.blocks.deltas
        self._text, self._thoughts, self._thought_deltas = "", "", 0
        for part in self.blocks.parts:
            if part.is_thoughts:
                self._thoughts, self._thought_deltas = part.text.decode(), part.deltas
            else:
                self._text = part.text.decode()
        if not self.blocks.deltas:
            return ""
        chat = chat_form(self._kind, self.blocks.body)
        if chat is None:
            return PROMPT_FORM
        prompt = _tokens_in((yield TOKENIZE, chat))
        if not prompt:
            return NO_TOKENIZE
        problem = yield from self._check_prompt(len(prompt))
        if problem:
            return problem
        text = self._text
        if self._thoughts:
            rendered = _tokens_in((yield TOKENIZE, self._with_answer(chat)))
            if rendered[: len(prompt)] != prompt:
                return REASONING
            body = b'{"tokens":' + msgspec.json.encode(rendered[len(prompt) :]) + b"}"
            text = decoded_text((yield "/detokenize", body)).rpartition(_CUT)[0]
            shows_thoughts = self._thoughts.strip() in text
            if not shows_thoughts or not text.endswith((self._text or self._thoughts).lstrip("\n")):
                return REASONING
        body = b'{"prompt":' + msgspec.json.encode(text) + b',"add_special_tokens":false}'
        answer = _tokens_in((yield TOKENIZE, body))
        if not answer:
            return NO_TOKENIZE
        self._ids, self._prompt, self._answer = [*prompt, *answer], len(prompt), len(answer)
        return ""

    def next_body(self) -> bytes:
        blocks = self.blocks
        blocks.rewind()
        self._parts = len(blocks.parts)
        self._ends_with_thoughts = bool(blocks.parts) and blocks.parts[-1].is_thoughts
        self._closes, self._shift, self._is_marked = bool(blocks.parts), 0, False
        self.continued_at = self._answer
        if not self._answer:
            return blocks.body
        fields = self._fields()
        ids, self._ids = msgspec.json.encode(self._ids), []
        changes = {"kv_transfer_params": b'{"prompt_token_ids":' + ids + b"}"}
        limit: int | None = getattr(fields, self._limit)
        if limit is not None:
            changes[self._limit] = b"%d" % (limit - self.continued_at)
        if fields.seed is not None:
            changes["seed"] = next_seed(fields.seed, self.continued_at)
        return set_members(self.blocks.body, changes | self._stub())

    def splice(self, events: list[bytes]) -> list[bytes]:
        spliced: list[bytes] = []
        for part in b"".join(events).replace(b"\r\n", b"\n").split(b"\n\n"):
            fields = decode_object(event_data(part) or b"")
            if fields is not None and has_name(part, str(fields.get("type", ""))):
                spliced += [self._encode(own) for own in self._own_events(fields)]
            elif part:
                spliced.append(part + b"\n\n")
        return self.blocks.take(spliced)

    def usage(self, reported: Usage | None) -> Usage | None:
        prompt = self.prompt_tokens
        if not self._answer:
            return reported
        if reported is None or reported.completion_tokens is None:
            return reported if self.blocks.is_finished else Usage(prompt, self.generated, None)
        cached = None if reported.cached_tokens is None else min(reported.cached_tokens, prompt)
        return Usage(prompt, reported.completion_tokens + self.continued_at, cached)

    @abstractmethod
    def _check_prompt(self, tokens: int) -> Queries:
        """Finds out whether engines count as many tokens of the prompt."""

    @abstractmethod
    def _own_refusal(self, fields: GenerationFields) -> str: ...

    @abstractmethod
    def _stub(self) -> dict[str, bytes]:
        """Returns what stands in the request in place of the prompt."""

    @abstractmethod
    def _own_events(self, fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields an event of the next engine as those of the client's stream."""

    def _with_answer(self, chat: bytes) -> bytes:
        """Returns the chat with the answer so far as its last message."""
        fields: dict[str, Any] = msgspec.json.decode(chat)
        text = self._text + _CUT if self._text else ""
        thoughts = self._thoughts if self._text else self._thoughts + _CUT
        answer = {"role": "assistant", "reasoning": thoughts, "content": text}
        messages = [*fields["messages"], answer]
        return msgspec.json.encode(fields | {"messages": messages, "add_generation_prompt": False})

    def _encode(self, fields: dict[str, Any]) -> bytes:
        if not self._is_marked:
            self._is_marked = True
            fields[CONTINUED_AT] = self.continued_at
        return b"event: %b\ndata: %b\n\n" % (str(fields.get("type", "")).encode(), msgspec.json.encode(fields))

    def _fields(self) -> GenerationFields:
        fields: GenerationFields = BODY_DECODERS[self._body_type].decode(self.blocks.body)
        return fields


class StreamMessage(StreamBlocks):
    """A stream of a message."""

    def __init__(self, request: ModelRequest, blocks: SentBlocks) -> None:
        super().__init__(request, blocks)
        self._split: dict[str, int] | None = None  # see `_prompt_counts`

    def read_problem(self, usage: Usage | None) -> str:
        has_read = usage is not None and usage.prompt_tokens == self._prompt + self.continued_at
        if self._answer and not has_read:
            self.problem = IDS_NOT_READ
        return self.problem

    def usage(self, reported: Usage | None) -> Usage | None:
        usage = super().usage(reported)
        if self._answer and usage is not None and usage.cached_tokens is not None:
            usage.cached_tokens = self._prompt_counts().get("cache_read_input_tokens", 0)
        return usage

    def closing(self, *, with_usage: bool) -> list[bytes]:
        events: list[dict[str, Any]] = []
        if not self.blocks.is_finished:
            usage = {"input_tokens": self.prompt_tokens, **self._prompt_counts(), "output_tokens": self.generated}
            stop = {"stop_reason": "max_tokens", "stop_sequence": None}
            ended = _block_stop(len(self.blocks.parts) - 1)
            events += [ended, {"type": "message_delta", "delta": stop, "usage": usage}]
        return [self._encode(event) for event in [*events, {"type": "message_stop"}]]

    def _check_prompt(self, tokens: int) -> Queries:
        yield from ()
        return "" if tokens == self.prompt_tokens else PROMPT_FORM

    def _own_refusal(self, fields: GenerationFields) -> str:
        assert isinstance(fields, MessagesRequest)
        if _value(fields.stop_sequences) not in (b"", b"[]"):
            return "stop-strings"
        if contains_any(_value(fields.thinking), _BUDGET):
            return "reasoning-budget"
        return "grammar" if _has_format(_value(fields.output_config)) else ""

    def _stub(self) -> dict[str, bytes]:
        return {"messages": MESSAGES_STUB}

    def _own_events(self, fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
        kind = fields.get("type")
        if kind == "message_start" and self.blocks.head:
            return
        if self._closes and kind in ("content_block_start", "message_delta"):
            self._closes = False
            block, kind_of_open = fields.get("content_block"), "thinking" if self._ends_with_thoughts else "text"
            self._shift = self._parts - 1
            if isinstance(block, dict) and block.get("type") == kind_of_open:
                return
            self._shift += 1
            yield _block_stop(self._parts - 1)
        if is_count(fields.get("index")):
            fields["index"] += self._shift
        if kind == "message_delta" and self.blocks.head and isinstance(fields.get("usage"), dict):
            self._count(fields["usage"])
        yield fields

    def _count(self, usage: dict[str, Any]) -> None:
        """Makes the usage of the last engine that of the whole answer."""
        counts = self._prompt_counts()
        usage.update({name: counts.get(name, 0) for name in _PROMPT_COUNTS if name in usage} | counts)
        if is_count(usage.get("output_tokens")):
            usage["output_tokens"] += self.continued_at

    def _prompt_counts(self) -> dict[str, int]:
        """Returns the tokens of the prompt as the first event splits them into cached and new."""
        if self._split is None:
            message = (decode_object(event_data(self.blocks.head) or b"") or {}).get("message")
            found = message.get("usage") if isinstance(message, dict) else None
            usage: dict[str, Any] = found if isinstance(found, dict) else {}
            self._split = {name: usage[name] for name in _PROMPT_COUNTS if is_count(usage.get(name))}
        return self._split


def _block_stop(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


class StreamResponse(StreamBlocks):
    """A stream of a response."""

    def __init__(self, request: ModelRequest, blocks: SentBlocks) -> None:
        super().__init__(request, blocks)
        self._number = 0
        self._names: dict[str, Any] = {}
        self._items: list[dict[str, Any]] = []
        self._done: list[msgspec.Raw] = []  # items that the next engine has ended; held with their events
        self._was_open = False
        self._repeats = 0
        self._taken = ""  # the next engine's name of the client's open item

    def next_number(self, number: int) -> int:
        """Returns the `sequence_number` of a next event; held events have none."""
        if self.blocks.is_finished:
            return number  # its last event has the whole response, which need not be read again
        last = decode_object(event_data(self.blocks.last) or b"") or {}
        if is_count(last.get("sequence_number")):
            return int(last["sequence_number"]) + 1
        return self._number or number  # nothing is held once the last event is not kept

    def closing(self, *, with_usage: bool) -> list[bytes]:
        if self.blocks.is_finished:
            return []
        opened = self._read_names()
        prompt, generated = self.prompt_tokens, self.generated
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": generated,
            "output_tokens_details": {"reasoning_tokens": min(self._thought_deltas, generated)},
            "total_tokens": prompt + generated,
        }
        end = {
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": [self._ended_item(place) for place in range(len(self._items))],
            "usage": usage,
        }
        last = {"type": "response.incomplete", "response": opened | end}
        return [self._encode(self._numbered(event)) for event in [*self._part_ends(), last]]

    def next_body(self) -> bytes:
        self._read_names()
        return super().next_body()

    def _read_names(self) -> dict[str, Any]:
        """Reads the names of the client's response from its opening events; returns it as they have
        it.
        """
        blocks = self.blocks
        self._number = self.next_number(0)
        response = (decode_object(event_data(blocks.head) or b"") or {}).get("response")
        opened = response if isinstance(response, dict) else {}
        self._names = {name: opened[name] for name in _NAMES if 0 < len(str(opened.get(name, ""))) <= SHORT_BYTES}
        openings = [decode_object(event_data(part.opening) or b"") or {} for part in blocks.parts]
        self._items = [opening.get("item") or {} for opening in openings]
        self._was_open = bool(blocks.parts) and blocks.parts[-1].is_open
        self._taken, self._done = "", []
        return opened

    def _check_prompt(self, tokens: int) -> Queries:
        version = _VERSION.match(str((decode_object((yield "/version", b"")) or {}).get("version", "")))
        if version is None or (int(version[1]), int(version[2])) < _FIRST_VERSION:
            return OLD_ENGINE
        # No event before the last one says how many tokens the prompt has.
        changes = {"stream": b"false", "store": b"false", "max_output_tokens": b"1"}
        usage = (decode_object((yield "/v1/responses", set_members(self.blocks.body, changes))) or {}).get("usage")
        return "" if isinstance(usage, dict) and usage.get("input_tokens") == tokens else PROMPT_FORM

    def _own_refusal(self, fields: GenerationFields) -> str:
        assert isinstance(fields, ResponsesRequest)
        if fields.previous_response_id or fields.background:
            return "stored"
        return "grammar" if _has_format(_value(fields.text)) else ""

    def _stub(self) -> dict[str, bytes]:
        return {"input": b'"-"'}

    def _own_events(self, fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
        kind, response, item, part = (fields.get(name) for name in ("type", "response", "item", "part"))
        if kind in ("response.created", "response.in_progress") and self.blocks.head:
            return
        if self._closes and (isinstance(response, dict) or isinstance(item, dict)):
            self._closes = False
            self._shift = len(self._items) - 1
            if isinstance(item, dict) and item.get("type") == self._items[-1].get("type"):
                self._taken = str(item.get("id"))
                return
            self._shift += 1
            yield from map(self._numbered, self._part_ends())
        if self._taken:
            if kind in PARTS_ADDED and self._was_open:
                self._was_open = False
                return
            if self._taken in (fields.get("item_id"), item.get("id") if isinstance(item, dict) else None):
                self._join(fields, item, part)
        if kind == "response.output_item.done" and isinstance(item, dict):
            self._done.append(msgspec.Raw(msgspec.json.encode(item)))
        if self.blocks.problem:
            self._done.clear()  # the last event has them, too
        if isinstance(response, dict) and self._may_repeat():
            fields["response"] = self._whole(response)
        if is_count(fields.get("output_index")):
            fields["output_index"] += self._shift
        yield self._numbered(fields)

    def _may_repeat(self) -> bool:
        self._repeats += 1
        return self._repeats <= _MAX_REPEATS

    def _join(self, fields: dict[str, Any], item: object, part: object) -> None:
        """Makes an event about the next engine's item one about the client's."""
        kind = str(fields["type"])
        if "item_id" in fields:
            fields["item_id"] = self._items[-1].get("id")
        if not kind.endswith(".done") or not self._may_repeat():
            return
        if kind.endswith("_text.done") and isinstance(fields.get("text"), str):
            _prepend(self._open_text(), fields)
        if kind.endswith("_part.done") and isinstance(part, dict):
            _prepend(self._open_text(), part)
        if kind.endswith("_item.done") and isinstance(item, dict):
            self._join_item(item)

    def _join_item(self, item: dict[str, Any]) -> None:
        item["id"] = self._items[-1].get("id")
        content = item.get("content")
        if isinstance(content, list) and content and isinstance(content[0], dict):
            _prepend(self._open_text(), content[0])
        elif self._open_text():
            item["content"] = [self._ended_part(len(self._items) - 1)]

    def _whole(self, response: dict[str, Any]) -> dict[str, Any]:
        """Returns the response object of the last engine as that of the client's response.

        Its items are those of the events. Engines parse the rest of an answer again for it, and
        may take a text behind thoughts for thoughts.
        """
        output: object = response.get("output")
        items: list[Any] = self._done
        if self._items and isinstance(output, list):
            ended = len(self._items)
            if not items and output and isinstance(output[0], dict) and (self._taken or self.blocks.problem):
                if self._taken:
                    self._join_item(output[0])
                items = output
            ended -= bool(self._taken and items)
            response["output"] = [*map(self._ended_item, range(ended)), *items]
        usage = response.get("usage")
        if isinstance(usage, dict) and self._answer:
            self._count(usage)
        return response | self._names

    def _count(self, usage: dict[str, Any]) -> None:
        prompt = usage["input_tokens"] = self.prompt_tokens
        if is_count(usage.get("output_tokens")):
            usage["output_tokens"] += self.continued_at
            usage["total_tokens"] = prompt + usage["output_tokens"]
        details, rest = usage.get("input_tokens_details"), prompt
        for name in ("cached_tokens", "cache_write_tokens"):
            if isinstance(details, dict) and is_count(details.get(name)):
                details[name] = min(details[name], rest)
                rest -= details[name]
        details = usage.get("output_tokens_details")
        if self._thoughts and isinstance(details, dict):
            if self._text or not is_count(details.get("reasoning_tokens")):  # none come behind the text
                details["reasoning_tokens"] = 0
            details["reasoning_tokens"] += self._thought_deltas

    def _open_text(self) -> str:
        return self._thoughts if self._items[-1].get("type") == _THOUGHTS else self._text

    def _ended_part(self, place: int) -> dict[str, Any]:
        if self._items[place].get("type") == _THOUGHTS:
            return {"type": "reasoning_text", "text": self._thoughts}
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": None}

    def _ended_item(self, place: int) -> dict[str, Any]:
        return self._items[place] | {"status": "completed", "content": [self._ended_part(place)]}

    def _part_ends(self) -> list[dict[str, Any]]:
        """Returns the events that end the client's open item."""
        place = len(self._items) - 1
        item, part = self._ended_item(place), self._ended_part(place)
        where = {"item_id": item.get("id"), "output_index": place, "content_index": 0}
        text = {"type": f"response.{part['type']}.done", "text": part["text"], **where}
        if part["type"] == "output_text":
            text["logprobs"] = []
        end = {"type": "response.output_item.done", "item": item, "output_index": place}
        return [text, {"type": "response.content_part.done", "part": part, **where}, end] if self._was_open else [end]

    def _numbered(self, fields: dict[str, Any]) -> dict[str, Any]:
        fields["sequence_number"] = self._number
        self._number += 1
        return fields


_STREAMS: Final = {MESSAGES.name: StreamMessage, RESPONSES.name: StreamResponse}


def stream_blocks(request: ModelRequest, blocks: SentBlocks) -> StreamBlocks:
    return _STREAMS[request.dialect.name](request, blocks)


def _prepend(text: str, part: dict[str, Any]) -> None:
    """Adds the text before that of the next engine, whose log probabilities lack those of it."""
    part["text"] = text + str(part.get("text") or "")
    if part.get("logprobs"):
        part["logprobs"] = []


def _value(raw: msgspec.Raw | msgspec.UnsetType) -> bytes:
    text = b"" if isinstance(raw, msgspec.UnsetType) else bytes(raw)
    return b"" if text == b"null" else text


def _tokens_in(reply: bytes) -> list[int]:
    tokens = (decode_object(reply) or {}).get("tokens")
    return tokens if isinstance(tokens, list) and all(map(is_count, tokens)) else []


def _has_format(options: bytes) -> bool:
    wanted = (decode_object(options) or {}).get("format")
    return isinstance(wanted, dict) and wanted.get("type") not in (None, "text")

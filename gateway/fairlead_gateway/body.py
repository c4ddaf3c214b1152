"""A request's JSON body as typed values: the fields that Fairlead or an engine's safety depends on, checked and named.

Unknown fields are allowed and go to the engine untouched. What is refused here is what parsers read differently or what
has killed engines: bytes that are not UTF-8, deep nesting, wrong types, counts out of range. Every refusal names the field.
"""

import re
from itertools import accumulate
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from fairlead.limits import Limits
from fairlead_gateway.errors import BadRequest

Text = str | None
Number = float | None
Whole = int | None
Tokens = str | list[str | int | list[int]]


_NO_JSON = Raw(b"null")


class StreamOptions(Struct):
    """``stream_options``."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Part(Struct):
    """One part of a message's content."""

    type: Text = None
    text: Text = None


class Function(Struct):
    """The function of a tool call."""

    name: Text = None
    arguments: str | dict[str, Raw] | None = None


class ToolFunction(Struct):
    """What a tool is."""

    name: str


class Tool(Struct):
    """One thing that the model may call."""

    type: Text = None
    function: ToolFunction | None = None


class ToolCall(Struct):
    """A call that the assistant made."""

    id: Text = None
    type: Text = None
    function: Function | None = None


class Message(Struct):
    """One message of a conversation."""

    role: str
    content: str | list[str | Part] | None = None
    name: Text = None
    tool_call_id: Text = None
    tool_calls: list[ToolCall] | None = None


class TextMessage(Struct):
    """A message whose content is looked at, but not copied: where it is a plain text, there is nothing more to check."""

    role: str
    content: Raw | None = None
    name: Text = None
    tool_call_id: Text = None
    tool_calls: list[ToolCall] | None = None


class Common(Struct, kw_only=True):
    """Fields of every request for a model."""

    model: str
    user: Text = None
    session_id: Text = None
    request_id: Text = None
    cache_salt: Text = None
    priority: Whole = None
    encoding_format: Text = None
    kv_transfer_params: Raw | UnsetType = UNSET
    ec_transfer_params: Raw | UnsetType = UNSET
    vllm_xargs: Raw | UnsetType = UNSET

    def forget(self) -> None:
        """Let go what refers to the body's bytes."""
        for name in self.__struct_fields__:
            if isinstance(getattr(self, name), Raw):
                setattr(self, name, _NO_JSON)

    @property
    def may_hand_over(self) -> bool:
        """A field of ``handoff`` is here, or one that may hold one; the parser knows a name however it is escaped."""
        return not (self.kv_transfer_params is self.ec_transfer_params is self.vllm_xargs is UNSET)


class Generation(Common, kw_only=True):
    """Fields of every request that generates."""

    stream: bool | None = None
    stream_options: Raw | UnsetType = UNSET
    max_tokens: Whole = None
    n: Whole = None
    temperature: Number = None
    top_p: Number = None
    top_k: Whole = None
    min_p: Number = None
    frequency_penalty: Number = None
    presence_penalty: Number = None
    repetition_penalty: Number = None
    min_tokens: Whole = None
    seed: Whole = None
    prompt_logprobs: Whole = None
    stop: Raw | UnsetType = UNSET
    logit_bias: Raw | UnsetType = UNSET
    response_format: Raw | UnsetType = UNSET
    structured_outputs: Raw | UnsetType = UNSET


class Chat(Generation, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: Raw
    max_completion_tokens: Whole = None
    logprobs: bool | None = None
    top_logprobs: Whole = None
    tools: Raw | UnsetType = UNSET
    tool_choice: str | dict[str, Raw] | None = None


class Completion(Generation, kw_only=True):
    """``POST /v1/completions``."""

    prompt: Raw
    suffix: Text = None
    echo: bool | None = None
    best_of: Whole = None
    logprobs: Whole = None


class Embedding(Common, kw_only=True):
    """``POST /v1/embeddings``."""

    input: Raw
    dimensions: Whole = None


class Other(Common, kw_only=True):
    """A request for a model that is neither read nor changed any further: counts that have killed engines are bounded."""

    n: Whole = None
    best_of: Whole = None
    max_tokens: Whole = None
    max_completion_tokens: Whole = None
    max_output_tokens: Whole = None
    top_logprobs: Whole = None


_DECODERS: dict[type[Common], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Chat, Completion, Embedding, Other)
}
_MESSAGES = msgspec.json.Decoder(list[Message])
_TEXT_MESSAGES = msgspec.json.Decoder(list[TextMessage])
_STREAM_OPTIONS = msgspec.json.Decoder(StreamOptions | None)
_TOKENS = msgspec.json.Decoder(Tokens)
_STOP = msgspec.json.Decoder(str | list[str] | None)
_LOGIT_BIAS = msgspec.json.Decoder(dict[str, float] | None)
_TOOLS = msgspec.json.Decoder(list[Tool] | None)
_RARE = attrgetter(
    "n",
    "min_tokens",
    "prompt_logprobs",
    "seed",
    "top_k",
    "stream_options",
    "stop",
    "logit_bias",
    "response_format",
    "structured_outputs",
    "max_completion_tokens",
    "top_logprobs",
    "tools",
)
_ABSENT = (None, None, None, None, None, UNSET, UNSET, UNSET, UNSET, UNSET, None, None, UNSET)
_AT = re.compile(r"(?P<what>.*?)(?: - at `\$?\.?(?P<path>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_PLAIN_STRING = re.compile(rb'"[^"]*"')
_SLICE_BYTES = 65_536
_QUOTE = ord('"')
_INT_32 = (1 << 31) - 1
_INT_64 = (1 << 63) - 1
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def parse(kind: type[Common], body: bytes, limits: Limits) -> Common:
    """The body as ``kind``. Raises BadRequest naming the field."""
    if not body:
        raise BadRequest("the body is empty: a JSON object is expected", code="invalid_json")
    try:
        if not body.isascii():
            str(body, "utf-8")
        _check_values(body, limits)
        found: Common = _DECODERS[kind].decode(body)
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 (byte {error.start})", code="invalid_json") from None
    except RecursionError:
        raise _too_deep(limits) from None
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None
    _check_depth(body, limits)
    if found.priority is not None:
        _in_range("priority", found.priority, -_INT_64 - 1, _INT_64)
    if isinstance(found, Generation):
        _check_generation(found, limits)
    if isinstance(found, Chat):
        _check_messages(found.messages, b"\\" not in body, limits)
    elif isinstance(found, Completion):
        _check_prompts("prompt", found.prompt, max(found.n or 1, found.best_of or 1), limits)
    elif isinstance(found, Embedding):
        _check_prompts("input", found.input, 1, limits)
        _in_range("dimensions", found.dimensions, 1, 1 << 20)
    elif isinstance(found, Other):
        for name in ("n", "best_of"):
            _in_range(name, getattr(found, name), 0, limits.choices)
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            _in_range(name, getattr(found, name), 0, limits.max_tokens)
        _in_range("top_logprobs", found.top_logprobs, 0, limits.logprobs)
    return found


def stream_options(found: Generation, limits: Limits) -> StreamOptions | None:
    """``stream_options``, None when absent or null."""
    if found.stream_options is UNSET:
        return None
    options: StreamOptions | None = _inner(_STREAM_OPTIONS, found.stream_options, "stream_options", limits)
    return options


def _inner(decoder: "msgspec.json.Decoder[Any]", raw: Raw, field: str, limits: Limits) -> Any:
    try:
        return decoder.decode(raw)
    except RecursionError:
        raise _too_deep(limits) from None
    except msgspec.ValidationError as error:
        raise _invalid(str(error), field) from None


def _invalid(text: str, field: str = "") -> BadRequest:
    """A validator's sentence as an error that names the field's path; it holds no value of the client's."""
    found = _AT.fullmatch(text)
    what, path = (found["what"], found["path"] or "") if found else (text, "")
    path = f"{field}{'.' if path and field and not path.startswith('[') else ''}{path}"
    missing = _MISSING.fullmatch(what)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
        return BadRequest(f"{path}: this field is required", param=path, code="missing_field")
    sentence = f"{path or 'body'}: {what[:1].lower()}{what[1:]}"
    return BadRequest(sentence, param=path or None, code="invalid_type" if "xpected" in what else "invalid_value")


def _too_deep(limits: Limits) -> BadRequest:
    return BadRequest(f"the body is nested deeper than {limits.json_depth} levels", code="invalid_json")


def _check_values(body: bytes, limits: Limits) -> None:
    """Bound how many values a parser can meet, before it meets them."""
    if len(body) > limits.json_values and body.count(b",") > limits.json_values:
        raise BadRequest(f"the body holds more than {limits.json_values} values", code="invalid_json")


def _check_depth(body: bytes, limits: Limits) -> None:
    """Bound nesting, also inside fields that nobody here reads. Cheap when there are few brackets at all."""
    if not _more_than(body, b"{", limits.json_depth // 2) and not _more_than(body, b"[", limits.json_depth // 2):
        return
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in body else body
    marks = _PLAIN_STRING.sub(b"", bare.translate(None, _NOT_STRUCTURE))
    depth = deepest = count = 0
    inside = False
    for start in range(0, len(marks), _SLICE_BYTES):  # no step of this may keep other threads waiting
        part = (b'"' if inside else b"") + marks[start : start + _SLICE_BYTES]
        inside = part.count(b'"') % 2 == 1
        part = _PLAIN_STRING.sub(b"", part + b'"' if inside else part)
        levels = list(accumulate(map(_STEP.__getitem__, part), initial=depth))
        depth, deepest, count = levels[-1], max(deepest, max(levels)), count + len(part)
        if count > 2 * limits.json_containers:
            what = f"the body holds more than {limits.json_containers} arrays and objects"
            raise BadRequest(what, code="invalid_json")
    if deepest > limits.json_depth:
        raise _too_deep(limits)


def _more_than(body: bytes, mark: bytes, most: int) -> bool:
    """Whether ``mark`` is there more than ``most`` times: a few searches where it is rare, and soon known where it is not."""
    at = -1
    for _ in range(most + 1):
        at = body.find(mark, at + 1)
        if at < 0:
            return False
    return True


def _check_messages(raw: Raw, plain: bool, limits: Limits) -> None:
    """``plain``: no text has an escape, so that a text is nothing but its bytes, and need not be decoded to be known as one."""
    if plain:
        try:
            light = _TEXT_MESSAGES.decode(raw)
        except (msgspec.DecodeError, RecursionError):
            light = []
        if light and all(one.content is None or memoryview(one.content)[0] == _QUOTE for one in light):
            return
    if not _inner(_MESSAGES, raw, "messages", limits):
        raise BadRequest("messages: at least one message is needed", param="messages")


def _check_prompts(field: str, raw: Raw, each: int, limits: Limits) -> None:
    """One prompt or several, as text or as tokens, but not mixed."""
    given = _inner(_TOKENS, raw, field, limits)
    if isinstance(given, str):
        return
    kinds = set(map(type, given))
    if len(kinds) > 1:
        raise BadRequest(f"{field}: texts and tokens cannot be mixed", param=field, code="invalid_type")
    if kinds != {int} and len(given) * each > limits.prompts:
        times = " times n" if each > 1 else ""
        message = f"{field}: at most {limits.prompts} prompts{times} are accepted"
        raise BadRequest(message, param=field, code="out_of_range")


def _check_generation(found: Generation, limits: Limits) -> None:
    most = found.max_tokens
    if most is not None and not 1 <= most <= limits.max_tokens:
        _in_range("max_tokens", most, 1, limits.max_tokens)
    if not isinstance(found, Chat) or _RARE(found) != _ABSENT:  # most conversations have none of the fields below
        _check_rare(found, limits)


def _check_rare(found: Generation, limits: Limits) -> None:
    stream_options(found, limits)
    _in_range("n", found.n, 1, limits.choices)
    _in_range("min_tokens", found.min_tokens, 0, limits.max_tokens)
    _in_range("prompt_logprobs", found.prompt_logprobs, -1, limits.logprobs)
    _in_range("seed", found.seed, -_INT_64 - 1, _INT_64)
    _in_range("top_k", found.top_k, -_INT_32 - 1, _INT_32)
    if isinstance(found, Chat):
        _in_range("max_completion_tokens", found.max_completion_tokens, 1, limits.max_tokens)
        _in_range("top_logprobs", found.top_logprobs, 0, limits.logprobs)
        _check_tools(found.tools, limits)
    elif isinstance(found, Completion):
        _in_range("best_of", found.best_of, 1, limits.choices)
        _in_range("logprobs", found.logprobs, 0, limits.logprobs)
    stop = _bounded(_STOP, found.stop, "stop", limits.stop_bytes, limits)
    if isinstance(stop, list) and len(stop) > limits.stop_strings:
        raise BadRequest(f"stop: at most {limits.stop_strings} strings are accepted", param="stop")
    _bounded(_LOGIT_BIAS, found.logit_bias, "logit_bias", limits.schema_bytes, limits)
    for name in ("response_format", "structured_outputs"):
        _bounded(None, getattr(found, name), name, limits.schema_bytes, limits)


def _check_tools(raw: Raw | UnsetType, limits: Limits) -> None:
    tools: list[Tool] = _bounded(_TOOLS, raw, "tools", limits.tools_bytes, limits) or []
    if len(tools) > limits.tools:
        raise BadRequest(f"tools: at most {limits.tools} are accepted", param="tools")
    for number, tool in enumerate(tools):
        if tool.function is None and tool.type in (None, "function"):
            path = f"tools[{number}].function"
            raise BadRequest(f"{path}: this field is required", param=path, code="missing_field")


def _bounded(
    decoder: "msgspec.json.Decoder[Any] | None", raw: Raw | UnsetType, field: str, most: int, limits: Limits
) -> Any:
    """A field's value, None when absent or not to be decoded; its length is checked first. Raises BadRequest."""
    if raw is UNSET:
        return None
    if memoryview(raw).nbytes > most:
        raise BadRequest(f"{field}: longer than {most} bytes", param=field, code="out_of_range")
    return _inner(decoder, raw, field, limits) if decoder is not None else None


def _in_range(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise BadRequest(f"{name}: must be a whole number from {low} to {high}", param=name, code="out_of_range")

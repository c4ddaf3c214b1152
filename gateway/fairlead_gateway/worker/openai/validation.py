"""A request's JSON body as typed values: the fields that Fairlead or an engine's safety depends on, checked and named.

Unknown fields are allowed and go to the engine untouched. What is refused here is what parsers read differently or what
has killed engines: bytes that are not UTF-8, deep nesting, wrong types, counts out of range. Every refusal names the field.

A body is parsed twice here: all of it, passing over its prompt, and then the prompt. ``usual`` spares most chats that.
"""

import re
from itertools import accumulate
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from fairlead.limits import Limits
from fairlead_gateway.errors import BadRequest
from fairlead_gateway.worker.openai.schemas import (
    BODY_DECODERS,
    LOGIT_BIAS_DECODER,
    MESSAGES_DECODER,
    PROMPT_INPUT_DECODER,
    STOP_DECODER,
    STREAM_OPTIONS_DECODER,
    TOOLS_DECODER,
    ChatRequest,
    CommonFields,
    CompletionRequest,
    EmbeddingRequest,
    GenerationFields,
    GenericRequest,
    StreamOptions,
    Tool,
)

_ERROR_PATTERN = re.compile(r"(?P<what>.*?)(?: - at `\$?\.?(?P<path>.*)`)?", re.DOTALL)
_MISSING_FIELD_PATTERN = re.compile(r"Object missing required field `(\w+)`")
_NON_STRUCTURAL_BYTES = bytes(set(range(256)) - set(b'[]{}"'))
_PLAIN_STRING = re.compile(rb'"[^"]*"')
_SLICE_BYTES = 65_536
_MAX_INT32 = (1 << 31) - 1
_MAX_INT64 = (1 << 63) - 1
_DEPTH_CHANGES = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def decode_body(kind: type[CommonFields], body: bytes, limits: Limits) -> CommonFields:
    """The body as ``kind``. Raises BadRequest naming the field."""
    if not body:
        raise BadRequest("the body is empty: a JSON object is expected", code="invalid_json")
    try:
        if not body.isascii():
            str(body, "utf-8")
        _check_values(body, limits)
        found: CommonFields = BODY_DECODERS[kind].decode(body)
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 (byte {error.start})", code="invalid_json") from None
    except RecursionError:
        raise _too_deep_error(limits) from None
    except msgspec.ValidationError as error:
        raise _validation_error(str(error)) from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None
    check_depth(body, limits)
    if found.priority is not None:
        check_priority(found.priority)
    if isinstance(found, GenerationFields):
        check_generation(found, limits)
    if isinstance(found, ChatRequest):
        _check_messages(found.messages, limits)
    elif isinstance(found, CompletionRequest):
        _check_prompts("prompt", found.prompt, max(found.n or 1, found.best_of or 1), limits)
    elif isinstance(found, EmbeddingRequest):
        _check_prompts("input", found.input, 1, limits)
        _check_range("dimensions", found.dimensions, 1, 1 << 20)
    elif isinstance(found, GenericRequest):
        for name in ("n", "best_of"):
            _check_range(name, getattr(found, name), 0, limits.choices)
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            _check_range(name, getattr(found, name), 0, limits.max_tokens)
        _check_range("top_logprobs", found.top_logprobs, 0, limits.logprobs)
    return found


def decode_stream_options(found: GenerationFields, limits: Limits) -> StreamOptions | None:
    """``stream_options``, None when absent or null."""
    if found.stream_options is UNSET:
        return None
    options: StreamOptions | None = _decode_field(
        STREAM_OPTIONS_DECODER, found.stream_options, "stream_options", limits
    )
    return options


def _decode_field(decoder: "msgspec.json.Decoder[Any]", raw: Raw, field: str, limits: Limits) -> Any:
    try:
        return decoder.decode(raw)
    except RecursionError:
        raise _too_deep_error(limits) from None
    except msgspec.ValidationError as error:
        raise _validation_error(str(error), field) from None


def _validation_error(text: str, field: str = "") -> BadRequest:
    """A validator's sentence as an error that names the field's path; it holds no value of the client's."""
    found = _ERROR_PATTERN.fullmatch(text)
    what, path = (found["what"], found["path"] or "") if found else (text, "")
    path = f"{field}{'.' if path and field and not path.startswith('[') else ''}{path}"
    missing = _MISSING_FIELD_PATTERN.fullmatch(what)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
        return BadRequest(f"{path}: this field is required", param=path, code="missing_field")
    sentence = f"{path or 'body'}: {what[:1].lower()}{what[1:]}"
    return BadRequest(sentence, param=path or None, code="invalid_type" if "xpected" in what else "invalid_value")


def _too_deep_error(limits: Limits) -> BadRequest:
    return BadRequest(f"the body is nested deeper than {limits.json_depth} levels", code="invalid_json")


def _check_values(body: bytes, limits: Limits) -> None:
    """Bound how many values a parser can meet, before it meets them."""
    if len(body) > limits.json_values and body.count(b",") > limits.json_values:
        raise BadRequest(f"the body holds more than {limits.json_values} values", code="invalid_json")


def check_depth(body: bytes, limits: Limits) -> None:
    """Bound nesting, also inside fields that nobody here reads. Cheap when there are few brackets at all."""
    if len(body) <= limits.json_depth:
        return
    if not _has_more_than(body, b"{", limits.json_depth // 2) and not _has_more_than(
        body, b"[", limits.json_depth // 2
    ):
        return
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in body else body
    marks = _PLAIN_STRING.sub(b"", bare.translate(None, _NON_STRUCTURAL_BYTES))
    depth = deepest = count = 0
    inside = False
    for start in range(0, len(marks), _SLICE_BYTES):  # no step of this may keep other threads waiting
        part = (b'"' if inside else b"") + marks[start : start + _SLICE_BYTES]
        inside = part.count(b'"') % 2 == 1
        part = _PLAIN_STRING.sub(b"", part + b'"' if inside else part)
        levels = list(accumulate(map(_DEPTH_CHANGES.__getitem__, part), initial=depth))
        depth, deepest, count = levels[-1], max(deepest, max(levels)), count + len(part)
        if count > 2 * limits.json_containers:
            what = f"the body holds more than {limits.json_containers} arrays and objects"
            raise BadRequest(what, code="invalid_json")
    if deepest > limits.json_depth:
        raise _too_deep_error(limits)


def _has_more_than(body: bytes, mark: bytes, count: int) -> bool:
    """Whether ``mark`` is there more than ``most`` times: a few searches where it is rare, and soon known where it is not."""
    at = -1
    for _ in range(count + 1):
        at = body.find(mark, at + 1)
        if at < 0:
            return False
    return True


def _check_messages(raw: Raw, limits: Limits) -> None:
    if not _decode_field(MESSAGES_DECODER, raw, "messages", limits):
        raise BadRequest("messages: at least one message is needed", param="messages")


def _check_prompts(field: str, raw: Raw, each: int, limits: Limits) -> None:
    """One prompt or several, as text or as tokens, but not mixed."""
    given = _decode_field(PROMPT_INPUT_DECODER, raw, field, limits)
    if isinstance(given, str):
        return
    kinds = set(map(type, given))
    if len(kinds) > 1:
        raise BadRequest(f"{field}: texts and tokens cannot be mixed", param=field, code="invalid_type")
    if kinds != {int} and len(given) * each > limits.prompts:
        times = " times n" if each > 1 else ""
        message = f"{field}: at most {limits.prompts} prompts{times} are accepted"
        raise BadRequest(message, param=field, code="out_of_range")


def check_priority(priority: int) -> None:
    """Raises BadRequest when no engine can take it."""
    _check_range("priority", priority, -_MAX_INT64 - 1, _MAX_INT64)


def check_generation(found: GenerationFields, limits: Limits) -> None:
    """Bound what an engine is asked to generate. Raises BadRequest naming the field."""
    _check_range("max_tokens", found.max_tokens, 1, limits.max_tokens)
    decode_stream_options(found, limits)
    _check_range("n", found.n, 1, limits.choices)
    _check_range("min_tokens", found.min_tokens, 0, limits.max_tokens)
    _check_range("prompt_logprobs", found.prompt_logprobs, -1, limits.logprobs)
    _check_range("seed", found.seed, -_MAX_INT64 - 1, _MAX_INT64)
    _check_range("top_k", found.top_k, -_MAX_INT32 - 1, _MAX_INT32)
    if isinstance(found, ChatRequest):
        _check_range("max_completion_tokens", found.max_completion_tokens, 1, limits.max_tokens)
        _check_range("top_logprobs", found.top_logprobs, 0, limits.logprobs)
        _check_tools(found.tools, limits)
    elif isinstance(found, CompletionRequest):
        _check_range("best_of", found.best_of, 1, limits.choices)
        _check_range("logprobs", found.logprobs, 0, limits.logprobs)
    stop = _decode_bounded(STOP_DECODER, found.stop, "stop", limits.stop_bytes, limits)
    if isinstance(stop, list) and len(stop) > limits.stop_strings:
        raise BadRequest(f"stop: at most {limits.stop_strings} strings are accepted", param="stop")
    _decode_bounded(LOGIT_BIAS_DECODER, found.logit_bias, "logit_bias", limits.schema_bytes, limits)
    for name in ("response_format", "structured_outputs"):
        _decode_bounded(None, getattr(found, name), name, limits.schema_bytes, limits)


def _check_tools(raw: Raw | UnsetType, limits: Limits) -> None:
    tools: list[Tool] = _decode_bounded(TOOLS_DECODER, raw, "tools", limits.tools_bytes, limits) or []
    if len(tools) > limits.tools:
        raise BadRequest(f"tools: at most {limits.tools} are accepted", param="tools")
    for number, tool in enumerate(tools):
        if tool.function is None and tool.type in (None, "function"):
            path = f"tools[{number}].function"
            raise BadRequest(f"{path}: this field is required", param=path, code="missing_field")


def _decode_bounded(
    decoder: "msgspec.json.Decoder[Any] | None", raw: Raw | UnsetType, field: str, max_bytes: int, limits: Limits
) -> Any:
    """A field's value, None when absent or not to be decoded; its length is checked first. Raises BadRequest."""
    if raw is UNSET:
        return None
    if memoryview(raw).nbytes > max_bytes:
        raise BadRequest(f"{field}: longer than {max_bytes} bytes", param=field, code="out_of_range")
    return _decode_field(decoder, raw, field, limits) if decoder is not None else None


def _check_range(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise BadRequest(f"{name}: must be a whole number from {low} to {high}", param=name, code="out_of_range")

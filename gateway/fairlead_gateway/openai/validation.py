"""Checks request bodies: the fields that Fairlead or an engine's safety depends on.

Unknown fields are allowed and go to the engine unchanged. A body is refused if parsers read it
differently, or if such bodies have crashed engines:

- bytes that are not UTF-8
- deep nesting
- wrong types
- counts out of range

Every error names the field. `repairs` returns what makes a refused body valid where engines accept
it as it is: `100.0` and `"100"` for 100, or `"true"` for true.

A body is parsed twice here: once as a whole, without its prompt, and then the prompt. `body_parser`
avoids that for most chats.
"""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from itertools import accumulate
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from fairlead.limits import Limits
from fairlead_gateway.dialects.chat import ChatRequest
from fairlead_gateway.dialects.completions import CompletionRequest
from fairlead_gateway.dialects.embeddings import EmbeddingRequest
from fairlead_gateway.dialects.messages import MessagesRequest
from fairlead_gateway.dialects.passed_on import GenericRequest
from fairlead_gateway.dialects.responses import ResponsesRequest
from fairlead_gateway.dialects.schemas import (
    ITEMS_DECODER,
    LAX_DECODERS,
    LOGIT_BIAS_DECODER,
    MEMBERS_DECODER,
    MESSAGES_DECODER,
    NULLABLE_ITEMS_DECODER,
    NUMBER_DECODER,
    PROMPT_INPUT_DECODER,
    REPETITION_DECODER,
    STOP_DECODER,
    STREAM_OPTIONS_DECODER,
    TOOLS_DECODER,
    CommonFields,
    GenerationFields,
    StreamOptions,
    Tool,
)
from fairlead_gateway.dialects.table import BODY_DECODERS, LISTED_DECODERS, SCALAR_FIELDS
from fairlead_gateway.errors import BadRequest
from fairlead_gateway.openai.json_edit import set_members

TOOLS_BYTES: Final = 4 * 1024 * 1024
"""Limit: tools of one request, as JSON text."""
TOOLS: Final = 1_024
"""Limit: tools of one request."""
SCHEMA_BYTES: Final = 262_144
"""Limit: response_format and other grammars of one request; engines compile them."""
CHOICES: Final = 128
"""Limit: n and best_of: each costs a whole response; a billion of them has crashed engines."""
LOGPROBS: Final = 100
"""Limit: logprobs and top_logprobs: each is a sort over the vocabulary."""
PROMPTS: Final = 2_048
"""Limit: prompts, inputs or documents of one request, times n; each is a request of its own to the
engine.
"""

REPETITION_PATTERN: Final = 256
"""Limit: tokens of a pattern in repetition_detection; vLLM compares each length after every
token.
"""

STOP_STRINGS: Final = 64
"""Limit: stop strings, and bad_words, of one request; engines search each after every token."""

_ERROR_PATTERN = re.compile(r"(?P<what>.*?)(?: - at `\$?\.?(?P<path>.*)`)?", re.DOTALL)
_MISSING_FIELD_PATTERN = re.compile(r"Object missing required field `(\w+)`")
_NON_STRUCTURAL_BYTES = bytes(set(range(256)) - set(b'[]{}"'))
_PLAIN_STRING = re.compile(rb'"[^"]*"')
_SLICE_BYTES = 65_536
_HALF_PAIR = re.compile(
    rb"(?<!\\)(?:\\\\){0,64}(?:"
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
_MAX_SCALAR_BYTES = 64
_BATCHES = {
    "messages": ("conversations", b"["),
    "input": ("inputs", b'"['),
    **dict.fromkeys(("documents", "items"), ("documents", b'"[{')),
    **dict.fromkeys(("queries", "data", "text_1", "text_2", "data_1", "data_2"), ("inputs", b'"[{')),
}
"""Lists of which each item is a request of its own to the engine, and how such items begin."""
_PATHS_OF_PROMPTS = {
    "prompt": "/v1/completions",
    "input": "/v1/responses or /v1/embeddings",
    "messages": "/v1/chat/completions or /v1/messages",
}
"""The fields that hold prompts, and the paths that have them."""
_STREAM_OPTIONS = "stream_options"
_OPTION_FIELDS = dict.fromkeys(StreamOptions.__struct_fields__, bool)
_NULL = Raw(b"null")
_TRUTH_VALUES = {
    **dict.fromkeys((b"true", b"t", b"yes", b"y", b"on", b"1", b"1.0"), True),
    **dict.fromkeys((b"false", b"f", b"no", b"n", b"off", b"0", b"0.0"), False),
}
"""The texts that pydantic reads as truth values, with which vLLM and SGLang check requests."""
_GRAMMARS = (
    *("response_format", "structured_outputs", "text", "output_config"),  # the third one of /v1/responses
    *("regex", "ebnf", "grammar", "json_schema"),
    *("guided_json", "guided_regex", "guided_grammar", "guided_choice"),
)
"""The fields of all engines and paths that hold a grammar, a schema or an expression."""
_TEXT_LISTS = ("bad_words", "dry_sequence_breakers")
"""The fields with texts that engines search after every token, besides stop strings."""
_REPETITION = "repetition_detection"
_SAMPLERS = "samplers"
_MAX_SAMPLERS_BYTES = 1_024
_MAX_WINDOW = 1 << 20
"""Tokens that a penalty of llama.cpp looks back; it allocates as many, whatever its context is."""
_MAX_INT32 = (1 << 31) - 1
_MAX_INT64 = (1 << 63) - 1
_DEPTH_CHANGES = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def decode_body(kind: type[CommonFields], body: bytes, limits: Limits) -> CommonFields:
    """Decodes a body as `kind`. Raises BadRequest, which names the field."""
    if not body:
        raise BadRequest("the body is empty: a JSON object is expected", code="invalid_json")
    try:
        if not body.isascii():
            str(body, "utf-8")
        _check_values(body, limits)
        fields = _decode_fields(kind, body)
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 (byte {error.start})", code="invalid_json") from None
    except RecursionError:
        raise _too_deep_error(limits) from None
    except msgspec.ValidationError as error:
        raise _with_path(_validation_error(str(error)), body) from None
    except msgspec.DecodeError as error:
        raise _not_json(body, str(error)) from None
    check_depth(body, limits)
    if isinstance(fields, GenerationFields):
        check_generation(fields, limits)
    if isinstance(fields, ChatRequest):
        _check_messages(fields.messages, limits)
    elif isinstance(fields, CompletionRequest):
        _check_prompts("prompt", fields.prompt, max(fields.n or 1, fields.best_of or 1), limits)
    elif isinstance(fields, EmbeddingRequest):
        _check_prompts("input", fields.input, 1, limits)
        _check_range("dimensions", fields.dimensions, 1, 1 << 20)
    elif isinstance(fields, MessagesRequest):
        _check_named_tools(fields.tools, limits)
        _check_stop("stop_sequences", fields.stop_sequences, limits)
        _decode_bounded(None, fields.output_config, "output_config", SCHEMA_BYTES, limits)
    elif isinstance(fields, ResponsesRequest):
        _check_named_tools(fields.tools, limits)
        _check_range("max_output_tokens", fields.max_output_tokens, 1, limits.max_tokens)
        _check_range("top_logprobs", fields.top_logprobs, 0, LOGPROBS)
        _decode_bounded(None, fields.text, "text", SCHEMA_BYTES, limits)
    elif isinstance(fields, GenericRequest):
        for name in ("n", "best_of"):
            _check_range(name, getattr(fields, name), 0, CHOICES)
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            _check_range(name, getattr(fields, name), 0, limits.max_tokens)
        _check_range("top_logprobs", fields.top_logprobs, 0, LOGPROBS)
        _check_stop("stop", fields.stop, limits)
        _check_stop("stop_sequences", fields.stop_sequences, limits)
        for name in _BATCHES:
            _check_batch(name, getattr(fields, name))
    return fields


def repairs(kind: type[CommonFields], body: bytes) -> dict[str, bytes]:
    """Returns the usual JSON texts of fields that engines read in another form, too.

    A body gets these texts before it is parsed again, so engines and gateway read the same values.
    """
    changes = _scalar_repairs(SCALAR_FIELDS[kind], body)
    if issubclass(kind, GenerationFields):
        options = bytes(_members(body).get(_STREAM_OPTIONS, _NULL))
        option_changes = _scalar_repairs(_OPTION_FIELDS, options)
        if option_changes:
            changes[_STREAM_OPTIONS] = set_members(options, option_changes)
    return changes


def _members(text: bytes) -> dict[str, Raw]:
    """Returns the members of a JSON object; none if the text is something else."""
    try:
        members: dict[str, Raw] = MEMBERS_DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return members


def _scalar_repairs(scalars: Mapping[str, type], text: bytes) -> dict[str, bytes]:
    """Returns the usual JSON texts of those members that are numbers or truth values."""
    members, changes = _members(text), dict[str, bytes]()
    for name, scalar in scalars.items():
        text = bytes(members.get(name, _NULL))
        if text == b"null" or len(text) > _MAX_SCALAR_BYTES or _is_read(scalar, text):
            continue
        value = _TRUTH_VALUES.get(text.strip(b'"').lower()) if scalar is bool else _lax_number(scalar, text)
        if value is not None:
            changes[name] = msgspec.json.encode(value)
    return changes


def _is_read(scalar: type, text: bytes) -> bool:
    """Whether a JSON text is a value of the type as it is."""
    try:
        msgspec.json.decode(text, type=scalar)
    except msgspec.DecodeError:
        return False
    return True


def _lax_number(scalar: type, text: bytes) -> float | None:
    """Returns the number in a JSON text, or in a text inside of one; None without one."""
    try:
        number: float | None = LAX_DECODERS[scalar].decode(text)
    except msgspec.DecodeError:
        return None
    return number if number is not None and math.isfinite(number) else None


def _not_json(body: bytes, reason: str) -> BadRequest:
    """Returns the error for a body that is no JSON."""
    half = _HALF_PAIR.search(body)
    if half is not None:
        return BadRequest(
            f"the body holds half of a surrogate pair (byte {half.start()}), which is no character",
            code="invalid_json",
            hint="write characters beyond U+FFFF as two escapes or as UTF-8, and cut texts between characters",
        )
    return BadRequest(f"the body is not valid JSON: {reason}", code="invalid_json")


def _decode_fields(kind: type[CommonFields], body: bytes) -> CommonFields:
    """Returns the fields, with `is_listed` if the body has no others."""
    fields: CommonFields
    listed = LISTED_DECODERS.get(kind)
    if listed is not None:
        try:
            fields = listed.decode(body)
            return fields
        except msgspec.ValidationError:
            pass  # another field, or a wrong type, which the other decoder reports
    fields = BODY_DECODERS[kind].decode(body)
    return fields


def decode_stream_options(fields: GenerationFields, limits: Limits) -> StreamOptions | None:
    """Returns `stream_options`; None if absent or null. Raises BadRequest."""
    if fields.stream_options is UNSET:
        return None
    options: StreamOptions | None = _decode_field(
        STREAM_OPTIONS_DECODER, fields.stream_options, "stream_options", limits
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
    """Returns the error for a validator's message; it names the field's path, and no value of the
    client.
    """
    match = _ERROR_PATTERN.fullmatch(text)
    what, path = (match["what"], match["path"] or "") if match else (text, "")
    path = f"{field}{'.' if path and field and not path.startswith('[') else ''}{path}"
    missing = _MISSING_FIELD_PATTERN.fullmatch(what)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
        return BadRequest(f"{path}: this field is required", param=path, code="missing_field")
    sentence = f"{path or 'body'}: {what[:1].lower()}{what[1:]}"
    return BadRequest(sentence, param=path or None, code="invalid_type" if "xpected" in what else "invalid_value")


def _with_path(error: BadRequest, body: bytes) -> BadRequest:
    """Returns the error; it names the paths of a body that has the prompt of another API."""
    if error.code == "missing_field" and error.param in _PATHS_OF_PROMPTS:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            for name in MEMBERS_DECODER.decode(body):
                if name in _PATHS_OF_PROMPTS:
                    error.hint = f"send a body with {name} to {_PATHS_OF_PROMPTS[name]}"
    return error


def _too_deep_error(limits: Limits) -> BadRequest:
    return BadRequest(f"the body is nested deeper than {limits.json_depth} levels", code="invalid_json")


def _check_values(body: bytes, limits: Limits) -> None:
    if len(body) > limits.json_values and body.count(b",") > limits.json_values:
        raise BadRequest(f"the body holds more than {limits.json_values} values", code="invalid_json")


def check_depth(body: bytes, limits: Limits) -> None:
    """Raises BadRequest if a body is nested too deep, or has too many arrays and objects.

    Fields that the gateway does not read count too. The check is cheap if brackets are few.
    """
    if len(body) <= limits.json_depth:
        return
    if not _has_more_than(body, b"{", limits.json_depth // 2) and not _has_more_than(
        body, b"[", limits.json_depth // 2
    ):
        return
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"") if body.find(b"\\") >= 0 else body
    marks = _PLAIN_STRING.sub(b"", unescaped.translate(None, _NON_STRUCTURAL_BYTES))
    depth = deepest = count = 0
    is_in_string = False
    for start in range(0, len(marks), _SLICE_BYTES):  # in steps, so that other threads get their turn
        marks_part = (b'"' if is_in_string else b"") + marks[start : start + _SLICE_BYTES]
        is_in_string = marks_part.count(b'"') % 2 == 1
        marks_part = _PLAIN_STRING.sub(b"", marks_part + b'"' if is_in_string else marks_part)
        levels = list(accumulate(map(_DEPTH_CHANGES.__getitem__, marks_part), initial=depth))
        depth, deepest, count = levels[-1], max(deepest, max(levels)), count + len(marks_part)
        if count > 2 * limits.json_containers:
            message = f"the body holds more than {limits.json_containers} arrays and objects"
            raise BadRequest(message, code="invalid_json")
    if deepest > limits.json_depth:
        raise _too_deep_error(limits)


def _has_more_than(body: bytes, byte: bytes, count: int) -> bool:
    """Whether `byte` occurs more than `count` times."""
    at = -1
    for _ in range(count + 1):
        at = body.find(byte, at + 1)
        if at < 0:
            return False
    return True


def _check_messages(raw: Raw, limits: Limits) -> None:
    if not _decode_field(MESSAGES_DECODER, raw, "messages", limits):
        raise BadRequest("messages: at least one message is needed", param="messages")


def _check_prompts(field: str, raw: Raw, choices: int, limits: Limits) -> None:
    """Raises BadRequest if there are too many prompts, or if they mix texts and tokens.

    choices: responses per prompt.
    """
    prompts = _decode_field(PROMPT_INPUT_DECODER, raw, field, limits)
    if isinstance(prompts, str):
        return
    kinds = set(map(type, prompts))
    if len(kinds) > 1:
        raise BadRequest(f"{field}: texts and tokens cannot be mixed", param=field, code="invalid_type")
    if kinds != {int} and len(prompts) * choices > PROMPTS:
        raise _too_many(field, "inputs" if field == "input" else "prompts", " times n" if choices > 1 else "")


def check_priority(raw: Raw) -> None:
    """Raises BadRequest if no engine can take the JSON text as a priority."""
    try:
        priority = msgspec.json.decode(raw, type=int)
    except msgspec.ValidationError as error:
        raise _validation_error(str(error), "priority") from None
    _check_range("priority", priority, -_MAX_INT64 - 1, _MAX_INT64)


def check_generation(fields: GenerationFields, limits: Limits) -> None:
    """Checks the fields that control generation. Raises BadRequest, which names the field."""
    _check_range("max_tokens", fields.max_tokens, 1, limits.max_tokens)
    decode_stream_options(fields, limits)
    _check_range("n", fields.n, 1, CHOICES)
    _check_range("min_tokens", fields.min_tokens, 0, limits.max_tokens)
    _check_range("prompt_logprobs", fields.prompt_logprobs, -1, LOGPROBS)
    _check_range("seed", fields.seed, -_MAX_INT64 - 1, _MAX_INT64)
    _check_range("top_k", fields.top_k, -_MAX_INT32 - 1, _MAX_INT32)
    if isinstance(fields, ChatRequest):
        _check_range("max_completion_tokens", fields.max_completion_tokens, 1, limits.max_tokens)
        _check_range("top_logprobs", fields.top_logprobs, 0, LOGPROBS)
        _check_tools(fields.tools, limits)
    elif isinstance(fields, CompletionRequest):
        _check_range("best_of", fields.best_of, 1, CHOICES)
        _check_range("logprobs", fields.logprobs, 0, LOGPROBS)
    _check_stop("stop", fields.stop, limits)
    _decode_bounded(LOGIT_BIAS_DECODER, fields.logit_bias, "logit_bias", SCHEMA_BYTES, limits)
    for name in ("response_format", "structured_outputs"):
        _decode_bounded(None, getattr(fields, name), name, SCHEMA_BYTES, limits)


def check_costly_fields(members: Mapping[str, Raw], limits: Limits) -> None:
    """Raises BadRequest if a field makes an engine compile, search or allocate too much.

    The gateway reads none of them: they are those of all engines, under whatever name.

    members: the top-level fields of a body.
    """
    for name in _GRAMMARS:
        raw = members.get(name)
        if raw is not None and (name != "text" or bytes(memoryview(raw)[:1]) == b"{"):
            _decode_bounded(None, raw, name, SCHEMA_BYTES, limits)
    if "tools" in members:
        _decode_bounded(None, members["tools"], "tools", TOOLS_BYTES, limits)
    for name in _TEXT_LISTS:
        if name in members:
            _check_stop(name, members[name], limits)
    if _SAMPLERS in members:
        _decode_bounded(None, members[_SAMPLERS], _SAMPLERS, _MAX_SAMPLERS_BYTES, limits)
    for name, low, high in (
        ("n_probs", 0, LOGPROBS),
        ("repeat_last_n", -1, _MAX_WINDOW),
        ("dry_penalty_last_n", -1, _MAX_WINDOW),
    ):
        if name in members:
            _check_range(name, _decode_field(NUMBER_DECODER, members[name], name, limits), low, high)
    if _REPETITION in members:
        found = _decode_field(REPETITION_DECODER, members[_REPETITION], _REPETITION, limits)
        if found is not None:
            _check_range(f"{_REPETITION}.max_pattern_size", found.max_pattern_size, 0, REPETITION_PATTERN)


def _check_stop(field: str, raw: Raw | UnsetType, limits: Limits) -> None:
    """Raises BadRequest if there are too many stop strings: engines search for each."""
    stop = _decode_bounded(STOP_DECODER, raw, field, limits.stop_bytes, limits)
    if isinstance(stop, list) and len(stop) > STOP_STRINGS:
        raise BadRequest(f"{field}: at most {STOP_STRINGS} strings are accepted", param=field)


def _check_batch(field: str, raw: Raw | UnsetType) -> None:
    """Raises BadRequest if a list of requests, or the one in its `content`, is too long."""
    if raw is UNSET or not (start := bytes(memoryview(raw)[:1])) or start not in b"[{":
        return
    if start == b"{":
        raw = MEMBERS_DECODER.decode(raw).get("content", _NULL)
        if bytes(memoryview(raw)[:1]) != b"[":
            return
    items, (words, starts) = ITEMS_DECODER.decode(raw), _BATCHES[field]
    if len(items) > PROMPTS and bytes(memoryview(items[0])[:1]) in starts:
        raise _too_many(field, words)


def _too_many(field: str, words: str, times: str = "") -> BadRequest:
    message = f"{field}: at most {PROMPTS} {words}{times} are accepted"
    return BadRequest(message, param=field, code="out_of_range", hint="send the rest in further requests")


def _check_tools(raw: Raw | UnsetType, limits: Limits) -> None:
    tools: list[Tool] = _decode_bounded(TOOLS_DECODER, raw, "tools", TOOLS_BYTES, limits) or []
    if len(tools) > TOOLS:
        raise BadRequest(f"tools: at most {TOOLS} tools are accepted", param="tools")
    for number, tool in enumerate(tools):
        if tool.function is None and tool.type in (None, "function"):
            path = f"tools[{number}].function"
            hint = "send tools that name themselves to /v1/messages or /v1/responses"
            raise BadRequest(f"{path}: this field is required", param=path, code="missing_field", hint=hint)


def _check_named_tools(raw: Raw | UnsetType, limits: Limits) -> None:
    """Raises BadRequest if there are too many tools, which name their functions themselves."""
    tools: list[Raw] = _decode_bounded(NULLABLE_ITEMS_DECODER, raw, "tools", TOOLS_BYTES, limits) or []
    if len(tools) > TOOLS:
        raise BadRequest(f"tools: at most {TOOLS} tools are accepted", param="tools")


def _decode_bounded(
    decoder: "msgspec.json.Decoder[Any] | None", raw: Raw | UnsetType, field: str, max_bytes: int, limits: Limits
) -> Any:
    """Returns a field's value after a check of its length; None if it is absent or has no decoder.

    Raises BadRequest.
    """
    if raw is UNSET:
        return None
    if memoryview(raw).nbytes > max_bytes:
        raise BadRequest(f"{field}: must not be longer than {max_bytes} bytes", param=field, code="out_of_range")
    return _decode_field(decoder, raw, field, limits) if decoder is not None else None


def _check_range(name: str, value: float | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise BadRequest(f"{name}: must be a whole number from {low} to {high}", param=name, code="out_of_range")

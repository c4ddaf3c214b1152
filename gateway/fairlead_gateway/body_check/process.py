"""The checking process: reads bodies from its parent, and replies.

    python -m fairlead_gateway.body_check.process LIMITS

It serves one query after the other, and ends when the socket closes. It opens no file and no other
socket. The operating system limits its memory. It writes no core dump, which would contain prompts.
"""

import gc
import sys
from collections.abc import Callable
from typing import BinaryIO, Final

import msgspec
from msgspec import UNSET, Raw

from fairlead.limits import Limits
from fairlead.runtime import process_tuning
from fairlead_gateway.body_check.messages import BodyProblem, BodyQuery, BodyReply, decode_limits
from fairlead_gateway.dialects.chat import ChatRequest
from fairlead_gateway.dialects.completions import CompletionRequest
from fairlead_gateway.dialects.schemas import MEMBERS_DECODER
from fairlead_gateway.dialects.table import BODY_DECODERS
from fairlead_gateway.dialects.text_bounds import text_bounds
from fairlead_gateway.errors import BadRequest
from fairlead_gateway.ipc.child_process import read_exactly, serve_parent
from fairlead_gateway.openai.body_parser import ModelRequest, parse_body
from fairlead_gateway.openai.field_policy import (
    ACCOUNT_FIELDS,
    MAX_ARGUMENT_BYTES,
    PART_FIELDS,
    REFUSED_FIELDS,
    SEARCHED_FIELDS,
    TOKEN_PROMPT_FIELDS,
    TOOLS_FIELD,
    UNCHECKED_STOP_FIELDS,
    are_client_tools,
    has_token_ids,
    is_argument_object,
)
from fairlead_gateway.openai.validation import SCHEMA_BYTES, repairs

BODY_CHECK_MEMORY_BYTES: Final = 1024 * 1024 * 1024
"""Limit: address space of the checking process; a body of small values takes 20 times its size."""

_KINDS = {kind.__name__: kind for kind in BODY_DECODERS}
_USED_VALUES = frozenset({"stream_options", "stop", "logit_bias", "response_format", "structured_outputs", "metadata"})
"""The fields of type Raw whose value the gateway uses; of the others it uses the presence.

It uses the tools of a chat as well.
"""
_PRESENT_TEXT = b"0"
_PRESENT = Raw(_PRESENT_TEXT)
_MAX_DESCRIBED_FIELDS = 2_048
_MAX_NAME_CHARACTERS = 512  # longer than any known or allowed name
_MAX_POLICY_VALUE_BYTES = 64
_LONG_POLICY_VALUE = b'""'
_TOKEN_IDS = b"[0]"
_CLIENT_TOOLS = b"[]"
_SERVER_TOOLS = b'[{"type":"server"}]'


def check_body(kind: str, body: bytes, limits: Limits, *, wants_bounds: bool = False) -> BodyReply:
    """Returns the reply for one body."""
    try:
        parsed = parse_body(_KINDS[kind], body, limits)
        reply = _describe(parsed, body, limits)
        if wants_bounds:
            prompt = parsed.dialect.prompt
            reply.bounds = text_bounds(body, is_open=prompt is not None and prompt.is_open)
        return reply
    except BadRequest as error:
        changes = repairs(_KINDS[kind], body) if error.code == "invalid_type" else {}
        return BodyReply(BodyProblem(error.message, error.param, error.code, error.hint, changes))


def _describe(parsed: ModelRequest, body: bytes, limits: Limits) -> BodyReply:
    """Returns what the worker needs of a valid body; its size does not grow with the body's."""
    fields = parsed.fields
    prompt_start = prompt_end = 0
    if parsed.messages_end:
        prompt_start, prompt_end = parsed.messages_start - 1, parsed.messages_end + 1
    elif parsed.dialect.prompt is not None and isinstance(raw := getattr(fields, parsed.dialect.prompt.field), Raw):
        prompt = bytes(raw)
        prompt_start = body.find(prompt)  # an equal text before it serves as well
        prompt_end = prompt_start + len(prompt)
    if isinstance(fields, ChatRequest):
        fields.tool_choice = None
    elif isinstance(fields, CompletionRequest):
        fields.suffix = fields.suffix and "present"
    used = _USED_VALUES | {TOOLS_FIELD} if isinstance(fields, ChatRequest) else _USED_VALUES
    for name in fields.__struct_fields__:
        value = getattr(fields, name)
        if isinstance(value, Raw) and name not in used:
            setattr(fields, name, _PRESENT)
        elif isinstance(value, str):
            _check_length(name, len(value.encode()), limits.name_bytes)
    options = getattr(fields, "stream_options", UNSET)
    if isinstance(options, Raw):
        _check_length("stream_options", memoryview(options).nbytes, SCHEMA_BYTES)
    members = _describe_members(parsed, body)
    reply = BodyReply(None, msgspec.json.encode(fields), members, prompt_start, prompt_end, parsed.cache_variant)
    reply.context = [(start := body.find(text), start + len(text)) for text in parsed.context]
    reply.repeated_bytes, reply.prompts, reply.items = parsed.repeated_bytes, parsed.prompts, parsed.items
    return reply


def _describe_members(parsed: ModelRequest, body: bytes) -> dict[str, bytes]:
    """Returns the top-level fields; those that `field_policy` judges by value have it if it is
    short.

    Of very many fields, only the first are returned, and those that `field_policy` names. No API
    has so many, so a policy that refuses unknown fields finds one.
    """
    members = MEMBERS_DECODER.decode(body) if parsed.members is None else parsed.members
    described: dict[str, bytes] = {}
    for name, raw in members.items():
        if name in REFUSED_FIELDS or name in ACCOUNT_FIELDS or name in UNCHECKED_STOP_FIELDS:
            is_short = memoryview(raw).nbytes <= _MAX_POLICY_VALUE_BYTES
            described[name] = bytes(raw) if is_short else _LONG_POLICY_VALUE
        elif is_argument_object(name) and len(described) < _MAX_DESCRIBED_FIELDS:
            is_short = memoryview(raw).nbytes <= MAX_ARGUMENT_BYTES
            described[name[-_MAX_NAME_CHARACTERS:]] = bytes(raw) if is_short else _LONG_POLICY_VALUE
        elif name == TOOLS_FIELD:
            described[name] = _CLIENT_TOOLS if are_client_tools(raw) else _SERVER_TOOLS
        elif name in TOKEN_PROMPT_FIELDS and has_token_ids(raw):
            described[name] = _TOKEN_IDS
        elif name in SEARCHED_FIELDS or name in PART_FIELDS or len(described) < _MAX_DESCRIBED_FIELDS:
            described[name[:_MAX_NAME_CHARACTERS]] = _PRESENT_TEXT
    return described


def _check_length(field: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise BadRequest(f"{field}: must not be longer than {max_bytes} bytes", param=field, code="out_of_range")


def main() -> None:
    """Runs the process until its socket closes."""
    limits = decode_limits(sys.argv[1])
    process_tuning.limit_memory(BODY_CHECK_MEMORY_BYTES)
    process_tuning.tune_malloc()
    gc.disable()  # nothing here has cycles, and a collection would look at each value of a body
    serve_parent(BodyQuery, reply_of(sys.stdin.buffer, limits))


def reply_of(queries: BinaryIO, limits: Limits) -> Callable[[BodyQuery], BodyReply]:
    """Returns the function that replies to a query, whose body follows it in `queries`."""

    def reply(query: BodyQuery) -> BodyReply:
        body = read_exactly(queries, query.body_bytes)
        return check_body(query.kind, body, limits, wants_bounds=query.wants_bounds)

    return reply


if __name__ == "__main__":
    main()

"""The request fields of KV transfers, by connector, for the prefill and the decode engine.

- `nixl`: the prefill engine returns an object that goes to the decode engine unchanged. Engines do
  not check it: a missing field hangs the request and crashes the engine. So an incomplete object is
  never passed on.
- `mooncake`: the gateway names the transfer, and gives the decode engine the prefill engine's
  address.
- `sglang`: both engines get the same body at the same time. A number that the gateway draws
  identifies the transfer.

`routing.prefill_placement` decides whether a prompt goes to a second engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import msgspec

from fairlead.decision import Decision
from fairlead.fleet.model import Instance
from fairlead.limits import Limits
from fairlead_gateway.dialects.chat import ChatRequest
from fairlead_gateway.dialects.completions import CompletionRequest
from fairlead_gateway.dialects.responses import RESPONSES
from fairlead_gateway.dialects.schemas import GenerationFields
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.openai.json_edit import is_any_enabled, set_members
from fairlead_gateway.telemetry.handoff_record import HandoffRecord

HANDOFF_OUTPUT_TOKENS: Final = 2_048
"""Limit: tokens of such a response if the client sets no maximum."""

_KV_TRANSFER_PARAMS = "kv_transfer_params"
_PREFILL_PARAMS = {"do_remote_decode": True, "do_remote_prefill": False}
_ECHO = (b'"echo"',)


@dataclass(slots=True)
class Handoff:
    """A prefilled prompt for one decode attempt.

    fields: added to the decode request.
    expires_at: monotonic seconds, the latest start of the decode.
    """

    prefill: Instance
    fields: Mapping[str, bytes]
    expires_at: float
    description: str
    decode_id: str | None = None


class HandoffState:
    """The remote prefill of a request whose model has prefill instances.

    transfer: the KV transfer of the next attempt; None once an engine accepted it, or without one.
    is_transferred: the engine that answers received the KV of the prompt.
    preselected: the first choice of a decode instance, until an attempt takes it.
    """

    __slots__ = ("is_transferred", "preselected", "record", "transfer")

    def __init__(self) -> None:
        self.record = HandoffRecord()
        self.transfer: Handoff | None = None
        self.is_transferred = False
        self.preselected: Decision | None = None


class _NixlParams(msgspec.Struct):
    """The required fields of a NIXL transfer and their types; all others pass unchecked."""

    do_remote_prefill: bool
    remote_block_ids: list[list[int]]
    remote_engine_id: str
    remote_request_id: str
    remote_host: str
    remote_port: int
    tp_size: int


class _PrefillResponse(msgspec.Struct):
    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"null")


_NIXL_DECODER = msgspec.json.Decoder(_NixlParams)
_PREFILL_RESPONSE_DECODER = msgspec.json.Decoder(_PrefillResponse)


def ineligible_reason(request: ModelRequest) -> tuple[str, str] | None:
    """Returns why one engine must do prefill and decode: one word, and a text.

    None if two engines can share them.
    """
    fields = request.fields
    if not isinstance(fields, GenerationFields):
        return "not-generation", "nothing is generated"
    if isinstance(fields, CompletionRequest) and not _is_one_prompt(bytes(fields.prompt)):
        return "several-prompts", "several prompts in one request"
    if fields.prompt_logprobs is not None or is_any_enabled(_ECHO, request.body):
        return "prompt-asked", "the prompt's own probabilities or text are requested"
    return None


def prefill_body(request: ModelRequest, fields: Mapping[str, bytes]) -> bytes:
    """Returns the client's body for the prefill engine: one token, no stream, nothing stored, the
    rest unchanged.
    """
    parsed, dialect = request.fields, request.dialect
    changes = {dialect.output_limit: b"1", "stream": b"false", **fields}
    if dialect.form is not None and dialect.form.has_min_tokens:
        changes["min_tokens"] = b"1"
    if dialect is RESPONSES:
        changes["store"] = b"false"
    if isinstance(parsed, ChatRequest) and parsed.max_completion_tokens is not None:
        changes["max_completion_tokens"] = b"1"
    if isinstance(parsed, GenerationFields) and parsed.n is not None:
        changes["n"] = b"1"
    if b'"stream_options"' in request.body:
        changes["stream_options"] = b"null"  # engines refuse it without a stream; null is as good as absent
    return set_members(request.body, changes)


def nixl_prefill_fields() -> dict[str, bytes]:
    return {_KV_TRANSFER_PARAMS: msgspec.json.encode(_PREFILL_PARAMS)}


def nixl_decode_fields(answer: bytes) -> dict[str, bytes] | None:
    """Returns the field with the prefill engine's NIXL object, unchanged; None if it is incomplete.

    answer: the body of the prefill engine's response.
    """
    try:
        raw = bytes(_PREFILL_RESPONSE_DECODER.decode(answer).kv_transfer_params)
        str(raw, "utf-8")  # also of fields not read here: the decode engine would refuse the request
        params = _NIXL_DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    is_complete = (
        params.do_remote_prefill
        and bool(params.remote_block_ids)
        and all(params.remote_block_ids)
        and params.remote_engine_id
        and params.remote_request_id
        and params.remote_host
        and 0 < params.remote_port < 65_536
        and params.tp_size > 0
    )
    return {_KV_TRANSFER_PARAMS: raw} if is_complete else None


def mooncake_prefill_fields(transfer_id: str) -> dict[str, bytes]:
    return {_KV_TRANSFER_PARAMS: msgspec.json.encode({**_PREFILL_PARAMS, "transfer_id": transfer_id})}


def mooncake_decode_fields(transfer_id: str, engine_id: str, bootstrap: str) -> dict[str, bytes]:
    """Returns the fields with which an engine fetches the KV of `transfer_id`.

    bootstrap: the URL of the prefill engine's bootstrap server.
    """
    params = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_engine_id": engine_id,
        "remote_bootstrap_addr": bootstrap,
        "transfer_id": transfer_id,
    }
    return {_KV_TRANSFER_PARAMS: msgspec.json.encode(params)}


def parse_mooncake_engine_id(answer: bytes, rank: int) -> str | None:
    """Returns the engine's id in a bootstrap server's response; None if there is none."""
    try:
        ranks = msgspec.json.decode(answer, type=dict[str, dict[str, msgspec.Raw]])
        engine_id = msgspec.json.decode(ranks[str(rank)]["engine_id"], type=str)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        return None
    return engine_id or None


def sglang_fields(bootstrap: str, room: int) -> dict[str, bytes]:
    """Returns the transfer fields, which both engines get.

    bootstrap: the URL of the prefill engine's bootstrap server.
    room: the number that identifies the transfer.
    """
    parts = urlsplit(bootstrap)
    fields = {"bootstrap_host": parts.hostname, "bootstrap_port": parts.port, "bootstrap_room": room}
    return {name: msgspec.json.encode(value) for name, value in fields.items()}


def kv_source_fields(address: str, request_id: str) -> dict[str, bytes]:
    """Returns the fields with which a vLLM engine looks for blocks in a peer's cache.

    address: `HOST:PORT` of the peer's cache tier.
    request_id: unique among all requests.
    """
    host, _, port = address.rpartition(":")
    params = {"kv_request_id": request_id, "remote_host": host.strip("[]"), "remote_port": int(port)}
    return {_KV_TRANSFER_PARAMS: msgspec.json.encode({"remote_kv_source": params})}


def bootstrap_url(instance: Instance) -> str:
    """Returns the URL of a prefill instance's bootstrap server: as configured, else port 8998."""
    if instance.bootstrap is not None:
        return instance.bootstrap
    host = urlsplit(instance.url).hostname or ""
    return f"http://[{host}]:8998" if ":" in host else f"http://{host}:8998"


def first_event_timeout_seconds(stream: bool, max_tokens: float | None, limits: Limits) -> float:
    """Returns the time limit of a decode engine's first event, in seconds.

    A plain response has its first byte when all tokens are computed, so it gets more time.
    """
    if stream:
        return limits.handoff_first_event_seconds
    tokens = HANDOFF_OUTPUT_TOKENS if max_tokens is None else max_tokens
    return limits.handoff_first_event_seconds + tokens * limits.handoff_output_token_seconds


def _is_one_prompt(raw: bytes) -> bool:
    inner = raw.lstrip()
    return inner[:1] != b"[" or inner[1:].lstrip()[:1] not in (b'"', b"[")

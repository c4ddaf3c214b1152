"""Whether two engines can serve a prompt, and what each of them is told: the pure part of the
hand-off from prefill to decode.

A prompt is computed by a prefill engine, and another one, which decodes, fetches the result.
Whether that is worth a second leg is decided by ``routing.convertible``. Three ways of telling are
known:

- ``nixl``: the prefill engine answers with an object that goes to the decode engine unchanged.
  Engines check nothing in it: a
field that is missing hangs the request and kills the engine, so an object that is not whole is
never passed on.
- ``mooncake``: the gateway names the transfer and tells the decode engine whom to ask.
- ``sglang``: both engines get the same body at once, and meet in a room with a number that the
  gateway draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from fairlead.fleet.model import Instance
from fairlead.limits import Limits
from fairlead_gateway.worker.openai import schemas
from fairlead_gateway.worker.openai.json_edit import set_members
from fairlead_gateway.worker.openai.schemas import ChatRequest, CommonFields, CompletionRequest, GenerationFields

_KV_TRANSFER_PARAMS = "kv_transfer_params"
_PREFILL_PARAMS = {"do_remote_decode": True, "do_remote_prefill": False}
_ECHO = (b'"echo"',)


@dataclass(slots=True)
class Handoff:
    """One prompt that was prefilled for one attempt at decoding. ``until`` is when it is too late
    to begin that.
    """

    prefill: Instance
    fields: Mapping[str, bytes]
    expires_at: float
    description: str
    decode_id: str | None = None


class _NixlParams(msgspec.Struct):
    """What must be there, with the types that it must have; everything else is the engines'
    business.
    """

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


def ineligible_reason(parsed: CommonFields, body: bytes) -> tuple[str, str] | None:
    """Why one engine has to do it all, in one word and in several; None when two can."""
    if not isinstance(parsed, GenerationFields):
        return "not-generation", "nothing is generated"
    if isinstance(parsed, CompletionRequest) and not _is_one_prompt(bytes(parsed.prompt)):
        return "several-prompts", "several prompts in one request"
    if parsed.prompt_logprobs is not None or schemas.is_any_enabled(_ECHO, body):
        return "prompt-asked", "the prompt's own probabilities or text are asked for"
    return None


def prefill_body(parsed: CommonFields, body: bytes, fields: Mapping[str, bytes]) -> bytes:
    """The client's body for the prefill engine: one token, whole and not as a stream, everything
    else as it is.
    """
    changes = {"max_tokens": b"1", "min_tokens": b"1", "stream": b"false", **fields}
    if isinstance(parsed, ChatRequest) and parsed.max_completion_tokens is not None:
        changes["max_completion_tokens"] = b"1"
    if isinstance(parsed, GenerationFields) and parsed.n is not None:
        changes["n"] = b"1"
    if b'"stream_options"' in body:
        changes["stream_options"] = b"null"  # refused where nothing is streamed; null is as good as absent
    return set_members(body, changes)


def nixl_prefill_fields() -> dict[str, bytes]:
    """What makes an engine keep what it computed."""
    return {_KV_TRANSFER_PARAMS: msgspec.json.encode(_PREFILL_PARAMS)}


def nixl_decode_fields(answer: bytes) -> dict[str, bytes] | None:
    """The prefill's object for the decode engine, byte for byte; None unless all of it is there."""
    try:
        raw = bytes(_PREFILL_RESPONSE_DECODER.decode(answer).kv_transfer_params)
        str(raw, "utf-8")  # fields that nobody here reads, too: the decode engine would refuse the whole request
        found = _NIXL_DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    whole = (
        found.do_remote_prefill
        and bool(found.remote_block_ids)
        and all(found.remote_block_ids)
        and found.remote_engine_id
        and found.remote_request_id
        and found.remote_host
        and 0 < found.remote_port < 65_536
        and found.tp_size > 0
    )
    return {_KV_TRANSFER_PARAMS: raw} if whole else None


def mooncake_prefill_fields(transfer_id: str) -> dict[str, bytes]:
    """The same, under a name."""
    return {_KV_TRANSFER_PARAMS: msgspec.json.encode({**_PREFILL_PARAMS, "transfer_id": transfer_id})}


def mooncake_decode_fields(transfer_id: str, engine_id: str, bootstrap: str) -> dict[str, bytes]:
    """Whom to ask for it."""
    told = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_engine_id": engine_id,
        "remote_bootstrap_addr": bootstrap,
        "transfer_id": transfer_id,
    }
    return {_KV_TRANSFER_PARAMS: msgspec.json.encode(told)}


def parse_mooncake_engine_id(answer: bytes, rank: int) -> str | None:
    """The engine's id from its bootstrap server's answer; None when it is not there."""
    try:
        ranks = msgspec.json.decode(answer, type=dict[str, dict[str, msgspec.Raw]])
        engine_id = msgspec.json.decode(ranks[str(rank)]["engine_id"], type=str)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        return None
    return engine_id or None


def sglang_fields(bootstrap: str, room: int) -> dict[str, bytes]:
    """Where both engines meet."""
    parts = urlsplit(bootstrap)
    meeting = {"bootstrap_host": parts.hostname, "bootstrap_port": parts.port, "bootstrap_room": room}
    return {name: msgspec.json.encode(value) for name, value in meeting.items()}


def kv_source_fields(address: str, name: str) -> dict[str, bytes]:
    """Has a vLLM engine look for the prompt's blocks in the cache of the peer whose tier listens at
    ``address`` (``HOST:PORT``), under a ``name`` that no other request has.
    """
    host, _, port = address.rpartition(":")
    told = {"kv_request_id": name, "remote_host": host.strip("[]"), "remote_port": int(port)}
    return {_KV_TRANSFER_PARAMS: msgspec.json.encode({"remote_kv_source": told})}


def bootstrap_url(instance: Instance) -> str:
    """The bootstrap server of a prefill instance: as given, else the engines' default port on its
    host.
    """
    if instance.bootstrap is not None:
        return instance.bootstrap
    host = urlsplit(instance.url).hostname or ""
    return f"http://[{host}]:8998" if ":" in host else f"http://{host}:8998"


def first_event_timeout_seconds(stream: bool, max_tokens: float | None, limits: Limits) -> float:
    """How long a decode engine may take until its first event; a whole answer takes the time of its
    tokens, too.
    """
    if stream:
        return limits.handoff_first_event_seconds
    tokens = limits.handoff_output_tokens if max_tokens is None else max_tokens
    return limits.handoff_first_event_seconds + tokens * limits.handoff_output_token_seconds


def _is_one_prompt(raw: bytes) -> bool:
    """Text, or token ids; a list of texts or of lists is several prompts."""
    inner = raw.lstrip()
    return inner[:1] != b"[" or inner[1:].lstrip()[:1] not in (b'"', b"[")

"""The policy on the top-level fields of request bodies: which of them reach an engine.

- `REMOVED_FIELDS` are used by gateways and engines among themselves. They are cut out of every
  body. Fields of a KV transfer name blocks in another engine's memory. Forty bytes of them crash a
  vLLM engine, and copied ones fetch the cache of another client. Engines crash when two live
  requests have one id. `kv_cache_report_mode` makes an engine report blocks that it did not store.
- `REFUSED_FIELDS` change how an engine treats a request compared with others, or make it load
  something. A request with one of them is refused, unless `engine.allowedFields` of its model names
  the field. A field that is null counts as absent.
- Token ids that an engine takes as indices without a check would end it for all clients. Prompts of
  token ids are refused for SGLang, and `stop_token_ids` with `min_tokens` for every engine, unless
  `engine.allowedFields` names `input_ids` or `stop_token_ids`.
- Other fields pass. With `engine.unknownFields: Refuse`, only those pass that the engine or the
  OpenAI API has (`engine_fields`).

vLLM reads some of these fields in `vllm_xargs` as well, so that object is searched, too. A key
counts in every spelling, and each time that it occurs. Most bodies have only fields that `schemas`
lists as safe; for them nothing is done here.

Source: docs/decisions/0022.
"""

from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import Final

import msgspec

from fairlead.fleet.model import EXTERNAL_API, Model, RequestPolicy, UnknownFields
from fairlead_gateway.errors import BadRequest
from fairlead_gateway.worker.openai.engine_fields import FIELDS
from fairlead_gateway.worker.openai.json_edit import rewrite_members
from fairlead_gateway.worker.openai.schemas import MEMBERS_DECODER
from fairlead_gateway.worker.openai.validation import check_priority

Members = Mapping[str, msgspec.Raw]

REMOVED_FIELDS: Final = frozenset(
    {
        *("kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode"),
        *("bootstrap_host", "bootstrap_port", "bootstrap_room", "bootstrap_pair_key"),
        *("data_parallel_rank", "routed_dp_rank", "disagg_prefill_dp_rank"),
        *("request_id", "rid"),
    }
)
REFUSED_FIELDS: Final[Mapping[str, str]] = {
    "priority": "sets the order of requests in the engine",
    "custom_logit_processor": "runs code of the client in the engine",
    "logits_processors": "runs code of the client in the engine",
    "lora_path": "chooses an adapter by its path",
    "prompt_embeds": "is a tensor that the engine loads",
    "session_params": "continues the state of another request",
    "stop_regex": "is an expression that the engine's scheduler searches after every token",
    "input_ids": "is a prompt of token ids, which the engine does not check",
    "embed_overrides": "are tensors that the engine loads",
    "query_embed_overrides": "are tensors that the engine loads",
    "item_embed_overrides": "are tensors that the engine loads",
}
"""The effect of each field, for the error."""

TOKEN_PROMPT_FIELDS: Final = frozenset({"prompt", "input", "query", "items"})
"""The fields that may hold a prompt as token ids."""
UNCHECKED_STOP_FIELDS: Final = frozenset({"stop_token_ids", "min_tokens"})
"""With both, engines use the ids of the first as indices."""
_ENGINES_WITH_UNCHECKED_PROMPTS: Final = frozenset({"sglang"})
_OVERLAY_FIELD: Final = "vllm_xargs"
SEARCHED_FIELDS: Final = REMOVED_FIELDS | {_OVERLAY_FIELD}
"""The fields that make a body be searched and edited."""

_NULL: Final = b"null"
_NO_STOP_TOKENS: Final = (_NULL, b"[]")
_NO_MINIMUM: Final = (_NULL, b"0")
_MAX_SHOWN_CHARACTERS: Final = 64
_ENGINE_TABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "vllm": ("openai", "vllm"),
    "sim": ("openai", "vllm"),
    "sglang": ("openai", "sglang"),
    EXTERNAL_API: ("openai",),
}
_ALL_TABLES: Final = ("openai", "sglang", "vllm")
_ALIASES: Final[Mapping[str, str]] = {
    "/v1/tokenize": "/tokenize",
    "/v1/detokenize": "/detokenize",
    "/rerank": "/v1/rerank",
    "/v2/rerank": "/v1/rerank",
    "/score": "/v1/score",
    "/classify": "/v1/classify",
}


def apply_field_policy(body: bytes, members: Members | None, path: str, model: Model) -> bytes:
    """Returns the body as engines get it; every byte of the fields that stay is unchanged.

    members: the top-level fields of the body; None if all of them are listed as safe.
    Raises BadRequest, which names the field.
    """
    policy = model.requests
    is_strict = policy.unknown_fields is UnknownFields.REFUSE
    if members is None:
        if not is_strict:
            return body
        members = MEMBERS_DECODER.decode(body)
    removed = {name for name in members if name in REMOVED_FIELDS}
    for name in REFUSED_FIELDS.keys() & members.keys():
        if bytes(members[name]) == _NULL:
            removed.add(name)
        elif name not in policy.allowed_fields:
            raise _not_allowed(name, REFUSED_FIELDS[name])
        elif name == "priority":
            check_priority(members[name])
    _check_token_ids(members, policy)
    if is_strict:
        _check_known(members, path, policy.engines, policy.allowed_fields | removed)
    if removed or _OVERLAY_FIELD in members:
        return remove_fields(body, REMOVED_FIELDS | removed)
    return body


def has_token_ids(raw: msgspec.Raw) -> bool:
    """Returns True if a prompt, as JSON text, is an array of token ids, or of such arrays."""
    if bytes(memoryview(raw)[:1]) != b"[":
        return False
    text = bytes(raw)
    return b'"' not in text and bool(text.strip(b"[], \t\r\n"))


def remove_fields(body: bytes, names: frozenset[str] | set[str] = REMOVED_FIELDS) -> bytes:
    """Returns a JSON object without these fields, also not in `vllm_xargs`; other bytes stay."""
    return rewrite_members(body, partial(_without, names))


def engine_tables(engine: str) -> list[dict[str, str]]:
    """Returns the tables of an engine type, by path; those of all types if it has none."""
    return [FIELDS[name] for name in _ENGINE_TABLES.get(engine, _ALL_TABLES)]


@cache
def _known_by_path(engine: str) -> dict[str, frozenset[str]]:
    names: dict[str, set[str]] = {}
    for table in engine_tables(engine):
        for path, fields in table.items():
            names.setdefault(path, set()).update(fields.split())
    return {path: frozenset(fields) for path, fields in names.items()}


def known_fields(engine: str, path: str) -> frozenset[str] | None:
    """Returns the fields that the engine or the OpenAI API has on a path.

    engine: a type that `engine_fields` does not know has the fields of all.
    None if the table does not have the path.
    """
    return _known_by_path(engine).get(_ALIASES.get(path, path))


def _check_known(members: Members, path: str, engines: Iterable[str], allowed: frozenset[str] | set[str]) -> None:
    """Raises BadRequest for the first field that no engine of the model has."""
    known: set[str] = {"session_id"}  # read by the gateway itself
    for engine in engines or ("",):
        fields = known_fields(engine, path)
        if fields is None:
            return
        known |= fields
    for name in members:
        if name not in known and name not in allowed:
            is_plain = name.isidentifier() and name.isascii() and len(name) <= _MAX_SHOWN_CHARACTERS
            raise _not_allowed(name if is_plain else None, "is not a field of this engine's API")


def _check_token_ids(members: Members, policy: RequestPolicy) -> None:
    """Raises BadRequest for token ids that an engine would use without a check.

    Source: PyTorch asserts on the device when an index is out of range, and the process ends.
    SGLang 0.5.23 checks neither prompts nor `stop_token_ids`; vLLM checks both since August 2026.
    """
    if members.keys() >= UNCHECKED_STOP_FIELDS and "stop_token_ids" not in policy.allowed_fields:
        is_used = bytes(members["stop_token_ids"]) not in _NO_STOP_TOKENS
        if is_used and bytes(members["min_tokens"]) not in _NO_MINIMUM:
            raise _not_allowed("stop_token_ids", "with min_tokens, engines use these ids without a check")
    if policy.engines & _ENGINES_WITH_UNCHECKED_PROMPTS and "input_ids" not in policy.allowed_fields:
        for name in TOKEN_PROMPT_FIELDS:
            if name in members and has_token_ids(members[name]):
                raise _not_allowed(name, REFUSED_FIELDS["input_ids"], "input_ids")


def _not_allowed(name: str | None, reason: str, setting_name: str | None = None) -> BadRequest:
    shown = "a field" if name is None else name
    setting = "engine.allowedFields" if name is None else f"engine.allowedFields: [{setting_name or name}]"
    return BadRequest(
        f"{shown}: {reason}, and clients may not set it",
        param=name,
        code="field_not_allowed",
        hint=f"leave it out, or the operator of the model allows it with {setting}",
    )


def _without(names: frozenset[str] | set[str], key: str, value: bytes) -> bytes | None:
    if key == _OVERLAY_FIELD and value[:1] == b"{":
        return rewrite_members(value, partial(_member_without, names))
    return _member_without(names, key, value)


def _member_without(names: frozenset[str] | set[str], key: str, value: bytes) -> bytes | None:
    return None if key in names else value

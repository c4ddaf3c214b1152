"""What engines tell each other, and the index, about caches is no client's business, so it is cut out of every body.

``kv_transfer_params`` and ``ec_transfer_params`` name blocks in another engine's memory. Forty bytes of them, sent by a client, end a
vLLM engine; copied ones fetch another tenant's cache. ``kv_cache_report_mode`` has an engine announce blocks that it did not store,
and who counts copies would believe in them for ever (docs/decisions/0022). vLLM takes them at the top of the body, and lays
``vllm_xargs`` over the same place, so both are looked into. A key counts as what it means, however it is escaped, and however often
it is given.
"""

from fairlead_gateway.worker.openai.json_edit import rewrite_members

KV_TRANSFER_FIELDS = frozenset({"kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode"})
_OVERLAY_FIELD = "vllm_xargs"
_TRIGGER_BYTES = (
    b"transfer_params",
    b"kv_cache_report_mode",
    b"u005",
    b"u006",
    b"u007",
)  # the names, or letters of theirs as escapes


def strip_kv_transfer_fields(body: bytes) -> bytes:
    """A JSON object without hand-off fields; every other byte stays. Bodies that cannot hold one are not walked at all."""
    return rewrite_members(body, _strip_top_level) if any(text in body for text in _TRIGGER_BYTES) else body


def _strip_top_level(key: str, value: bytes) -> bytes | None:
    if key == _OVERLAY_FIELD and value[:1] == b"{":
        return rewrite_members(value, _strip_member)
    return _strip_member(key, value)


def _strip_member(key: str, value: bytes) -> bytes | None:
    return None if key in KV_TRANSFER_FIELDS else value

"""The removal of the fields that engines use among themselves, from every body.

- `kv_transfer_params` and `ec_transfer_params` name blocks in another engine's memory. Forty bytes
  of them crash a vLLM engine, and copied ones fetch another tenant's cache.
- `kv_cache_report_mode` makes an engine report blocks that it did not store; a KV-cache index would
  keep them for ever.
- `request_id` (vLLM) and `rid` (SGLang) are ids of requests inside an engine. A client that chooses
  them can crash the engine, or disturb the requests of others.

vLLM reads these fields at the top of the body and in `vllm_xargs`, so both are searched. A key
counts in every spelling, and each time that it occurs.

Source: docs/decisions/0022.
"""

from fairlead_gateway.worker.openai.json_edit import rewrite_members

KV_TRANSFER_FIELDS = frozenset(
    {"kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode", "request_id", "rid"}
)
_OVERLAY_FIELD = "vllm_xargs"
# The names, or escapes of their letters.
_TRIGGER_BYTES = (b"transfer_params", b"kv_cache_report_mode", b'request_id"', b'rid"', b"u005", b"u006", b"u007")


def strip_kv_transfer_fields(body: bytes) -> bytes:
    """Returns a JSON object without `KV_TRANSFER_FIELDS`; every other byte stays.

    Bodies that cannot hold such a field are not scanned.
    """
    return rewrite_members(body, _strip_top_level) if any(text in body for text in _TRIGGER_BYTES) else body


def _strip_top_level(key: str, value: bytes) -> bytes | None:
    if key == _OVERLAY_FIELD and value[:1] == b"{":
        return rewrite_members(value, _strip_member)
    return _strip_member(key, value)


def _strip_member(key: str, value: bytes) -> bytes | None:
    return None if key in KV_TRANSFER_FIELDS else value

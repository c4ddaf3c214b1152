"""What engines tell each other, and the index, about caches is no client's business, so it is cut out of every body.

``kv_transfer_params`` and ``ec_transfer_params`` name blocks in another engine's memory. Forty bytes of them, sent by a client, end a
vLLM engine; copied ones fetch another tenant's cache. ``kv_cache_report_mode`` has an engine announce blocks that it did not store,
and who counts copies would believe in them for ever (docs/decisions/0022). vLLM takes them at the top of the body, and lays
``vllm_xargs`` over the same place, so both are looked into. A key counts as what it means, however it is escaped, and however often
it is given.
"""

from fairlead_gateway.splice import rewritten

FIELDS = frozenset({"kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode"})
_LAID_OVER = "vllm_xargs"
_SUSPECT = (
    b"transfer_params",
    b"kv_cache_report_mode",
    b"u005",
    b"u006",
    b"u007",
)  # the names, or letters of theirs as escapes


def without_handoff(body: bytes) -> bytes:
    """A JSON object without hand-off fields; every other byte stays. Bodies that cannot hold one are not walked at all."""
    return rewritten(body, _top) if any(text in body for text in _SUSPECT) else body


def _top(key: str, value: bytes) -> bytes | None:
    if key == _LAID_OVER and value[:1] == b"{":
        return rewritten(value, _inner)
    return _inner(key, value)


def _inner(key: str, value: bytes) -> bytes | None:
    return None if key in FIELDS else value

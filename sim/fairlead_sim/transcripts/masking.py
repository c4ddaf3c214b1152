"""Masks for what may differ between two runs: ids, times, generated text and Content-Length.

Token counts are not masked. Another tokenizer counts differently, so such a recording can only
match in shape.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from fairlead_sim.transcripts.recording import HttpResponse

_HEX_ID = re.compile(r"(?<![0-9a-z])(?=[0-9a-f]*\d)[0-9a-f]{8,}(?![0-9a-z])")
_IDS = frozenset({"id", "request_id", "system_fingerprint"})
_TIMES = frozenset({"created", "created_at", "completed_at"})
_GENERATED = frozenset({"text", "content", "token_ids", "logprobs"})


def mask_header(name: str, value: str) -> tuple[str, str]:
    """Returns a header in lower case; a value with an id, a time or a length is masked."""
    lowered = name.lower()
    if lowered in ("date", "content-length"):
        return lowered, "*"
    return lowered, _HEX_ID.sub("*", value) if lowered == "x-request-id" else value


def mask_document(document: Any) -> Any:
    """Returns a JSON document with masked ids, times and generated text, in its key order."""
    generated = isinstance(document, dict) and ("choices" in document or "output" in document or _is_message(document))
    return _mask_item(document, None, within=generated)


def decode_body(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def is_compact(raw: bytes) -> bool:
    """Whether JSON was written without spaces, as in bodies; errors within streams have spaces."""
    document = json.loads(raw)
    return len(raw) <= len(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


def mask_headers(response: HttpResponse) -> list[tuple[str, str]]:
    """Returns all headers, masked, in order."""
    return [mask_header(*pair) for pair in response.headers]


def mask_events(response: HttpResponse) -> list[Any]:
    """Returns all events, masked, in order."""
    return [mask_document(event) for event in response.events()]


def header_names(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Returns the header names, sorted and in lower case."""
    return sorted(name.lower() for name, _ in pairs)


def _is_message(document: dict[str, Any]) -> bool:
    return document.get("type") == "message"


def _mask_item(item: Any, key: str | None, *, within: bool) -> Any:
    if isinstance(item, dict):
        return {name: _mask_item(child, name, within=within) for name, child in item.items()}
    if key in _TIMES and isinstance(item, int | float):
        return "*"
    if key in _IDS and isinstance(item, str):
        return _HEX_ID.sub("*", item)
    if within and key in _GENERATED:
        return _mask_generated(item, key)
    if isinstance(item, list):
        return [_mask_item(child, key, within=within) for child in item]
    return item


def _mask_generated(item: Any, key: str) -> Any:
    """Masks generated text, but not its absence (null, or the empty text of a first event)."""
    if isinstance(item, str):
        return "*" if item else ""
    if isinstance(item, list) and all(isinstance(child, int) for child in item):
        return "*"
    if isinstance(item, list):
        return [_mask_item(child, key, within=True) for child in item]
    return item

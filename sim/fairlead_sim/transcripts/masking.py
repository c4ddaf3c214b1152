"""What may differ between two runs of the same engine: ids, times, generated text, Content-Length. Nothing else.

Token counts are not masked: another tokenizer counts otherwise, and such a recording can only match in shape.
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
    """A header in lower case with its value masked where it holds an id, a time or a length."""
    lowered = name.lower()
    if lowered in ("date", "content-length"):
        return lowered, "*"
    return lowered, _HEX_ID.sub("*", value) if lowered == "x-request-id" else value


def mask_document(document: Any) -> Any:
    """A JSON document with ids, times and generated text replaced; key order is kept."""
    generated = isinstance(document, dict) and ("choices" in document or "output" in document or _is_message(document))
    return _mask_item(document, None, within=generated)


def decode_body(raw: bytes) -> str:
    """A body that is not JSON, as text."""
    return raw.decode("utf-8", "replace")


def is_compact(raw: bytes) -> bool:
    """Whether JSON was written without spaces: the engine writes bodies so, and in-stream errors with spaces."""
    document = json.loads(raw)
    return len(raw) <= len(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


def mask_headers(response: HttpResponse) -> list[tuple[str, str]]:
    """All headers of an answer, masked, in order."""
    return [mask_header(*pair) for pair in response.headers]


def mask_events(response: HttpResponse) -> list[Any]:
    """All server-sent events of an answer, masked, in order."""
    return [mask_document(event) for event in response.events()]


def header_names(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Header names, sorted and in lower case."""
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
    """Generated text is masked; its absence (null, or the empty text of a stream's first event) is not."""
    if isinstance(item, str):
        return "*" if item else ""
    if isinstance(item, list) and all(isinstance(child, int) for child in item):
        return "*"
    if isinstance(item, list):
        return [_mask_item(child, key, within=True) for child in item]
    return item

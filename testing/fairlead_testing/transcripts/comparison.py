"""Two comparisons of a live response with the recorded one; both return differences as sentences.

*exact*: status line, headers in order and body are equal after masking (``masking``). JSON is equal
down to key order and spacing, a stream event by event, each event in its own chunk.

*shape*: equal status, header names, JSON keys and types at every depth, and for a stream the same
kinds of events in order. The order counts within a choice, because the choices of a request
interleave freely. A run of content events counts once, because an engine under load merges tokens.
A list has the set of its elements' shapes. Words of closed sets (``finish_reason``, ``object``, …)
must be equal. Counts of cached tokens must be zero or positive as recorded.

Masks for what may differ between two runs: ids, times, generated text and Content-Length.

Token counts are not masked. Another tokenizer counts differently, so such a recording can only
match in shape.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from fairlead_testing.transcripts.recording import HttpResponse

_HEX_ID = re.compile(r"(?<![0-9a-z])(?=[0-9a-f]*\d)[0-9a-f]{8,}(?![0-9a-z])")
_IDS = frozenset({"id", "request_id", "system_fingerprint"})
_TIMES = frozenset({"created", "created_at", "completed_at"})
_GENERATED = frozenset({"text", "content", "token_ids", "logprobs"})

_CLOSED_WORD_FIELDS = frozenset({"object", "role", "finish_reason", "type", "status", "code"})
_SIGN_FIELDS = frozenset({"cached_tokens", "created_cache_tokens", "cache_read_input_tokens", "server_load"})
_KEYED_BY_TEXT = frozenset({"top_logprobs", "prompt_logprobs", "added_tokens_decoder"})


def mask_header(name: str, value: str) -> tuple[str, str]:
    """Returns a header in lower case; a value with an id, a time or a length is masked."""
    lowered = name.lower()
    if lowered in ("date", "content-length"):
        return lowered, "*"
    return lowered, _HEX_ID.sub("*", value) if lowered == "x-request-id" else value


def mask_document(document: Any) -> Any:
    generated = isinstance(document, dict) and ("choices" in document or "output" in document or _is_message(document))
    return _mask_item(document, None, within=generated)


def decode_body(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def is_compact(raw: bytes) -> bool:
    document = json.loads(raw)
    return len(raw) <= len(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


def mask_headers(response: HttpResponse) -> list[tuple[str, str]]:
    return [mask_header(*pair) for pair in response.headers]


def mask_events(response: HttpResponse) -> list[Any]:
    return [mask_document(event) for event in response.events()]


def header_names(pairs: Iterable[tuple[str, str]]) -> list[str]:
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


def compare_exact(recorded: HttpResponse, live: HttpResponse) -> list[str]:
    """Returns the differences from the recording, except those that ``masking`` hides."""
    differences = _compare_status(recorded, live)
    if mask_headers(recorded) != mask_headers(live):
        differences.append(f"headers: recorded {mask_headers(recorded)}, live {mask_headers(live)}")
    if recorded.is_stream or live.is_stream:
        return differences + list(_exact_stream(recorded, live))
    if not _is_json(recorded) or not _is_json(live):
        if recorded.body != live.body:
            differences.append(f"body: recorded {decode_body(recorded.body)!r}, live {decode_body(live.body)!r}")
        return differences
    differences.extend(_exact_json("body", mask_document(recorded.json()), mask_document(live.json())))
    if is_compact(recorded.body) != is_compact(live.body):
        differences.append("body: spaces between JSON tokens differ")
    return differences


def compare_shape(recorded: HttpResponse, live: HttpResponse) -> list[str]:
    """Returns the differences from the recording's shape."""
    differences = _compare_status(recorded, live)
    if header_names(recorded.headers) != header_names(live.headers):
        differences.append(
            f"header names: recorded {header_names(recorded.headers)}, live {header_names(live.headers)}"
        )
    if recorded.is_stream or live.is_stream:
        return differences + _shape_stream(recorded, live)
    if _is_json(recorded) != _is_json(live):
        differences.append("body: only one of the two is JSON")
    elif _is_json(recorded):
        differences.extend(_differences("body", _shape_of(recorded.json(), None), _shape_of(live.json(), None)))
    elif bool(recorded.body) != bool(live.body):
        differences.append("body: only one of the two is empty")
    return differences


def event_kinds_by_choice(events: list[Any]) -> dict[str, list[str]]:
    """Returns the kinds of a stream's events in order, by choice; a run of one kind counts once.

    Events without a choice (usage, error, end) are under ``stream``.
    """
    kinds: dict[str, list[str]] = {}
    for event in events:
        owner, kind = _event_kind(event)
        run = kinds.setdefault(owner, [])
        if not run or run[-1] != kind:
            run.append(kind)
    return kinds


def _compare_status(recorded: HttpResponse, live: HttpResponse) -> list[str]:
    if (recorded.status, recorded.reason) == (live.status, live.reason):
        return []
    return [f"status: recorded {recorded.status} {recorded.reason}, live {live.status} {live.reason}"]


def _is_json(response: HttpResponse) -> bool:
    return response.fields.get("content-type", "").startswith("application/json")


def _exact_stream(recorded: HttpResponse, live: HttpResponse) -> Iterator[str]:
    recorded_events, live_events = mask_events(recorded), mask_events(live)
    if len(recorded_events) != len(live_events):
        yield f"stream: recorded {len(recorded_events)} events, live {len(live_events)}"
    for number, (their, our) in enumerate(zip(recorded_events, live_events, strict=False)):
        yield from _exact_json(f"event {number}", their, our)
    if (len(recorded_events) == len(recorded.chunks)) != (len(live_events) == len(live.chunks)):
        yield "stream: only one of the two has one event per chunk"


def _exact_json(where: str, theirs: Any, ours: Any) -> Iterator[str]:
    if json.dumps(theirs) != json.dumps(ours):
        yield f"{where}: recorded {_shorten(theirs)}, live {_shorten(ours)}"


def _shape_stream(recorded: HttpResponse, live: HttpResponse) -> list[str]:
    theirs, ours = recorded.events(), live.events()
    if event_kinds_by_choice(theirs) != event_kinds_by_choice(ours):
        return [f"event kinds: recorded {event_kinds_by_choice(theirs)}, live {event_kinds_by_choice(ours)}"]
    differences: list[str] = []
    for kind in sorted({kind for run in event_kinds_by_choice(theirs).values() for kind in run}):
        their = _union([_shape_of(event, None) for event in theirs if _event_kind(event)[1] == kind])
        our = _union([_shape_of(event, None) for event in ours if _event_kind(event)[1] == kind])
        differences.extend(_differences(f"event {kind!r}", their, our))
    return differences


def _event_kind(event: Any) -> tuple[str, str]:
    """Returns (owner, kind) of an event; the owner is a choice's number or ``stream``."""
    if not isinstance(event, dict):
        return "stream", str(event)
    if "error" in event:
        return "stream", "error"
    choices = event.get("choices")
    if not choices:
        return "stream", "usage" if "usage" in event else str(event.get("type", "other"))
    choice = choices[0]
    owner = f"choice {choice.get('index')}"
    if "role" in choice.get("delta", {}):
        return owner, "role"
    return owner, "content" if choice.get("finish_reason") is None else "finish"


def _shape_of(item: Any, key: str | None) -> Any:
    if isinstance(item, dict):
        if key in _KEYED_BY_TEXT and "token" not in item:
            return {"<any>": _union([_shape_of(child, None) for child in item.values()])}
        return {name: _shape_of(child, name) for name, child in item.items()}
    if isinstance(item, list):
        return [_union([_shape_of(child, key) for child in item])]
    if key in _CLOSED_WORD_FIELDS and isinstance(item, str):
        return f"the word {item}"
    if key in _SIGN_FIELDS and isinstance(item, int):
        return "a positive number" if item > 0 else "zero"
    return {str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}[type(item)]


def _union(shapes: list[Any]) -> Any:
    """Returns the common shape, or the tuple of different shapes in a fixed order."""
    distinct = {json.dumps(shape, sort_keys=True): shape for shape in shapes}
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    return tuple(distinct[name] for name in sorted(distinct))


def _differences(where: str, theirs: Any, ours: Any) -> Iterator[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in theirs.keys() | ours.keys():
            if name not in ours:
                yield f"{where}.{name}: missing, recorded as {_shorten(theirs[name])}"
            elif name not in theirs:
                yield f"{where}.{name}: not in the recording, live {_shorten(ours[name])}"
            else:
                yield from _differences(f"{where}.{name}", theirs[name], ours[name])
    elif isinstance(theirs, list) and isinstance(ours, list) and theirs != ours:
        yield from _differences(f"{where}[]", theirs[0], ours[0])
    elif theirs != ours:
        yield f"{where}: recorded {_shorten(theirs)}, live {_shorten(ours)}"


def _shorten(item: Any) -> str:
    text = json.dumps(item)
    return text if len(text) <= 600 else text[:600] + "…"

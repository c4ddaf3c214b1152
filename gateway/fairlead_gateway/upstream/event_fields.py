"""Events of a stream as objects that the gateway changes."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

_MAX_COUNT: Final = 1 << 53


def split_events(events: Iterable[bytes]) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yields each event with its fields; None for the end, a comment or garbage."""
    for event in b"".join(events).replace(b"\r\n", b"\n").split(b"\n\n"):
        if event:
            data = event[5:].strip() if event.startswith(b"data:") else b""
            yield event + b"\n\n", decode_object(data) if data[:1] == b"{" else None


def encode_event(fields: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def decode_object(data: bytes) -> dict[str, Any] | None:
    """Returns a JSON object; None if the data is none."""
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def is_count(value: object) -> bool:
    """Whether a value can be a number of tokens, or a token.

    Why a bound: a number of more than 4,300 digits cannot be written as text.
    """
    return isinstance(value, int) and 0 <= value <= _MAX_COUNT


def only_choice(fields: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the first choice in an event; None if there is none."""
    choices = fields.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def is_opening(fields: dict[str, Any]) -> bool:
    """Whether an event opens an answer: it names the role, and nothing more."""
    choices = fields.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return False
    delta = choices[0].get("delta")
    return isinstance(delta, dict) and "role" in delta and not delta.get("content")

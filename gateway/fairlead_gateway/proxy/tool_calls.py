"""Numbers the tool calls in streams of chats whose engine leaves `index` out.

Clients join the parts of a call by it, so that they merge all calls into one, or fail. A call
begins with the name of its function. Its parts have its id, or follow it without a name. Repeated
names, which clients append, and empty types, which take the place of the first, are left out.
"""

from collections.abc import Callable
from typing import Any, Final

from fairlead_gateway.upstream.event_fields import encode_event, only_choice, split_events

MAX_NUMBERED_CALLS: Final = 128
"""Limit: tool calls of one stream that get an index."""
MAX_NUMBERED_BYTES: Final = 1_048_576
"""Limit: events of tool calls that are decoded to get one."""
_KEPT: Final = 256
_CALLS: Final = (b'"tool_calls":[', b'"tool_calls": [')


class ToolCallIndexer:
    """The rewriter of one stream, after another one. It decodes nothing after the first index."""

    def __init__(self, before: Callable[[list[bytes]], list[bytes]] | None) -> None:
        self._before = before
        self._places: dict[tuple[str, str, str], int] = {}  # by choice, id and name, and without the name
        self._last: dict[str, int] = {}  # by choice
        self._is_off = False

    def rewrite_events(self, events: list[bytes]) -> list[bytes]:
        events = events if self._before is None else self._before(events)
        return events if self._is_off else [self._number(event) for event in events]

    def _number(self, events: bytes) -> bytes:
        if len(events) > MAX_NUMBERED_BYTES or (events.find(_CALLS[0]) < 0 and events.find(_CALLS[1]) < 0):
            return events
        numbered: list[bytes] = []
        for event, fields in split_events([events]):
            choice = only_choice(fields or {}) or {}
            delta = choice.get("delta")
            calls = delta.get("tool_calls") if isinstance(delta, dict) else None
            for call in calls if isinstance(calls, list) else ():
                if isinstance(call, dict):
                    self._is_off |= call.get("index") is not None or len(self._places) >= 2 * MAX_NUMBERED_CALLS
                    call["index"] = self._place(choice.get("index"), call)
            numbered.append(encode_event(fields) if fields and calls else event)
        return events if self._is_off else b"".join(numbered)

    def _place(self, choice: object, call: dict[str, Any]) -> int:
        """Returns the number of a part's call among those of its choice."""
        function = call.get("function")
        id_, name = call.get("id"), function.get("name") if isinstance(function, dict) else None
        if not call.get("type"):
            call.pop("type", None)
        owner = _short(choice)
        known, call_id = self._places.get((owner, _short(id_), _short(name))), (owner, _short(id_), "")
        if owner in self._last and not name:
            return self._places[call_id] if id_ and call_id in self._places else self._last[owner]
        if id_ and known is not None:
            del call["function"]["name"]
            return known
        place = self._last[owner] = self._last.get(owner, -1) + 1
        self._places[owner, _short(id_), _short(name)] = place
        self._places.setdefault(call_id, place)
        return place


def _short(value: object) -> str:
    return str(value)[:_KEPT] if isinstance(value, str | int) else ""

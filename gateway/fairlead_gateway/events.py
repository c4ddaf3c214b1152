"""An engine's event stream on its way through: whole events only, and the few that Fairlead must understand.

Events pass as the bytes that the engine sent. Looked into are only those that hold a usage, an error, an abort or the
end; the rest is told apart by a few substring searches, because a stream is thousands of events. (Inside a JSON string a
quote is always escaped, so ``"usage":`` with plain quotes can only be a key.)
"""

import re
from typing import Final

import msgspec

from fairlead_gateway.engine_fields import EVENT
from fairlead_gateway.sse import Fault, Usage, engine_fault, usage_of

_ENDS: Final = (b"\n\n", b"\r\n\r\n")
_LONGEST_END: Final = 4
_ANY_EVENT: Final = re.compile(rb".*?(?:\n\n|\r\n\r\n)[\r\n]*", re.DOTALL)
_EVENT_STARTS: Final = (b"data:", b":", b"event:", b"id:", b"retry:")


class Events:
    """One stream. ``strip`` drops the usage event that the client did not ask for."""

    __slots__ = ("_held", "_limit", "aborted", "count", "done", "fault", "strip", "usage")

    def __init__(self, *, strip: bool, limit: int) -> None:
        self._held = bytearray()
        self._limit = limit
        self.strip = strip
        self.usage: Usage | None = None
        self.fault: Fault | None = None
        self.aborted = False
        self.done = False
        self.count = 0

    def passing(self, pieces: list[bytes]) -> list[bytes]:
        """What of ``pieces`` may go to the client now. After ``fault``, ``aborted`` or ``done`` nothing follows."""
        out: list[bytes] = []
        for piece in pieces:
            if self._held or not piece.endswith(b"\n\n"):
                piece = self._whole(piece)
                if not piece:
                    if self.fault is not None:
                        break
                    continue
            if (  # found, not asked for with ``in``, which tries first whether the bytes are a number
                piece.find(b'"usage"') >= 0
                or piece.find(b'"error"') >= 0
                or piece.find(b'"finish_reason":"abort"') >= 0
                or piece.find(b"[DONE]") >= 0
                or not piece.startswith(b"data: ")
            ):
                piece = self._look(piece)
            else:
                self.count += 1
            if piece:
                out.append(piece)
            if self.fault is not None or self.aborted or self.done:
                break
        return out

    @property
    def ended(self) -> bool:
        """The stream said that it is over, well or badly."""
        return self.done or self.aborted or self.fault is not None

    def _whole(self, piece: bytes) -> bytes:
        """Everything up to the last event boundary; the rest is held for the next piece."""
        held = self._held
        new = max(0, len(held) - _LONGEST_END + 1)  # before that, no boundary: it would have been cut there
        held += piece
        whole = b""
        if b"\n" in piece:
            cut = max(at + len(end) if (at := held.rfind(end, new)) >= 0 else 0 for end in _ENDS)
            whole = bytes(held[:cut])
            del held[:cut]
        if len(held) > self._limit:
            self.fault = Fault(502, "an event of the engine's stream is too long")
        return whole

    def _look(self, piece: bytes) -> bytes:
        """Go through the events of a piece one by one."""
        kept: list[bytes] = []
        for event in _split(piece):
            if self.ended:
                break
            if self._keep(event):
                kept.append(event)
        return b"".join(kept)

    def _keep(self, event: bytes) -> bool:
        data = _data(event)
        if data is None:
            said = event.lstrip()
            if said and not said.startswith(_EVENT_STARTS):
                self.fault = Fault(502, "the engine's stream is not an event stream")
                return False
            return True
        if data == b"[DONE]":
            self.done = True
            return True
        try:
            found = EVENT.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.fault = Fault(502, "the engine's stream holds an event that is not JSON")
            return False
        if found.error is not msgspec.UNSET and bytes(found.error) != b"null":
            self.fault = engine_fault(bytes(found.error), 500)
            return False
        if found.usage is not None:
            self.usage = usage_of(found.usage)
            if self.strip and not found.choices:
                return False
        if b'"finish_reason":"abort"' in data:
            self.aborted = True
            return False
        self.count += 1
        return True


def first_event(events: Events, pieces: list[bytes]) -> list[bytes]:
    """Pass the beginning of a stream with every event looked into, so that nothing that is not a stream gets through."""
    out: list[bytes] = []
    for piece in pieces:
        if events.ended:
            break
        whole = events._whole(piece)
        kept = events._look(whole) if whole and not events.ended else b""
        if kept:
            out.append(kept)
    return out


def _split(piece: bytes) -> list[bytes]:
    """The events of a piece, each with its empty lines."""
    if b"\r" in piece or b"\n\n\n" in piece:
        return _ANY_EVENT.findall(piece)
    return [part + b"\n\n" for part in piece.split(b"\n\n") if part]


def _data(event: bytes) -> bytes | None:
    """The data of an event, None when it has none (a comment)."""
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None

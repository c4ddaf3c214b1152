"""An engine's event stream on its way through: whole events only, and the few that Fairlead must
understand.

Events pass as the bytes that the engine sent. Looked into are only those that hold a usage, an
error, an abort or the end; the rest is told apart by a few substring searches, because a stream is
thousands of events. (Inside a JSON string a quote is always escaped, so ``"usage":`` with plain
quotes can only be a key.)
"""

import re
from typing import Final

import msgspec

from fairlead_gateway.worker.upstream.response_schemas import EVENT_DECODER
from fairlead_gateway.worker.upstream.usage import InBandError, Usage, parse_in_band_error, parse_usage

_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n")
_LONGEST_END: Final = 4
_ANY_EVENT: Final = re.compile(rb".*?(?:\n\n|\r\n\r\n)[\r\n]*", re.DOTALL)
_EVENT_STARTS: Final = (b"data:", b":", b"event:", b"id:", b"retry:")


class SseScanner:
    """One stream. ``strip`` drops the usage event that the client did not ask for."""

    __slots__ = (
        "_max_event_bytes",
        "_partial",
        "error",
        "event_count",
        "is_aborted",
        "is_done",
        "strip_usage",
        "usage",
    )

    def __init__(self, *, strip_usage: bool, max_event_bytes: int) -> None:
        self._partial = bytearray()
        self._max_event_bytes = max_event_bytes
        self.strip_usage = strip_usage
        self.usage: Usage | None = None
        self.error: InBandError | None = None
        self.is_aborted = False
        self.is_done = False
        self.event_count = 0

    def filter_chunks(self, chunks: list[bytes]) -> list[bytes]:
        """What of ``pieces`` may go to the client now. After ``fault``, ``aborted`` or ``done``
        nothing follows.
        """
        out: list[bytes] = []
        for piece in chunks:
            if self._partial or not piece.endswith(b"\n\n"):
                piece = self._take_complete(piece)
                if not piece:
                    if self.error is not None:
                        break
                    continue
            if (  # found, not asked for with ``in``, which tries first whether the bytes are a number
                piece.find(b'"usage"') >= 0
                or piece.find(b'"error"') >= 0
                or piece.find(b'"finish_reason":"abort"') >= 0
                or piece.find(b"[DONE]") >= 0
                or not piece.startswith(b"data: ")
            ):
                piece = self._inspect_events(piece)
            else:
                self.event_count += 1
            if piece:
                out.append(piece)
            if self.error is not None or self.is_aborted or self.is_done:
                break
        return out

    @property
    def is_finished(self) -> bool:
        """The stream said that it is over, well or badly."""
        return self.is_done or self.is_aborted or self.error is not None

    def _take_complete(self, piece: bytes) -> bytes:
        """Everything up to the last event boundary; the rest is held for the next piece."""
        held = self._partial
        new = max(0, len(held) - _LONGEST_END + 1)  # before that, no boundary: it would have been cut there
        held += piece
        whole = b""
        if b"\n" in piece:
            cut = max(at + len(end) if (at := held.rfind(end, new)) >= 0 else 0 for end in _EVENT_ENDS)
            whole = bytes(held[:cut])
            del held[:cut]
        if len(held) > self._max_event_bytes:
            self.error = InBandError(502, "an event of the engine's stream is too long")
        return whole

    def _inspect_events(self, piece: bytes) -> bytes:
        """Go through the events of a piece one by one."""
        kept: list[bytes] = []
        for event in _split_events(piece):
            if self.is_finished:
                break
            if self._inspect_event(event):
                kept.append(event)
        return b"".join(kept)

    def _inspect_event(self, event: bytes) -> bool:
        data = _event_data(event)
        if data is None:
            said = event.lstrip()
            if said and not said.startswith(_EVENT_STARTS):
                self.error = InBandError(502, "the engine's stream is not an event stream")
                return False
            return True
        if data == b"[DONE]":
            self.is_done = True
            return True
        try:
            found = EVENT_DECODER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.error = InBandError(502, "the engine's stream holds an event that is not JSON")
            return False
        if found.error is not msgspec.UNSET and bytes(found.error) != b"null":
            self.error = parse_in_band_error(bytes(found.error), 500)
            return False
        if found.usage is not None:
            self.usage = parse_usage(found.usage)
            if self.strip_usage and not found.choices:
                return False
        if b'"finish_reason":"abort"' in data:
            self.is_aborted = True
            return False
        self.event_count += 1
        return True


def filter_first_chunks(scanner: SseScanner, chunks: list[bytes]) -> list[bytes]:
    """Pass the beginning of a stream with every event looked into, so that nothing that is not a
    stream gets through.
    """
    out: list[bytes] = []
    for piece in chunks:
        if scanner.is_finished:
            break
        whole = scanner._take_complete(piece)
        kept = scanner._inspect_events(whole) if whole and not scanner.is_finished else b""
        if kept:
            out.append(kept)
    return out


def _split_events(piece: bytes) -> list[bytes]:
    """The events of a piece, each with its empty lines."""
    if b"\r" in piece or b"\n\n\n" in piece:
        return _ANY_EVENT.findall(piece)
    return [part + b"\n\n" for part in piece.split(b"\n\n") if part]


def _event_data(event: bytes) -> bytes | None:
    """The data of an event, None when it has none (a comment)."""
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None

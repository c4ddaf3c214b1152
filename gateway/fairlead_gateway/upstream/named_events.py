"""Scans event streams whose events have names, such as those of messages and responses.

Events pass as the bytes that the engine sent. Those with a part of the answer pass unread; the few
others are read for counts, errors and the end. The table of dialects holds the names.

Names are read at the starts of lines. Inside a JSON string, a line break is escaped, so no text of
a client looks like a name.
"""

import re
from typing import Final

import msgspec

from fairlead_gateway.dialects.event_grammar import EventGrammar
from fairlead_gateway.upstream.response_schemas import NAMED_EVENT_DECODER, NamedEvent, StopDelta
from fairlead_gateway.upstream.sse import COMMENT, PINGS, SseScanner, decode_members, event_data, event_name
from fairlead_gateway.upstream.stream_record import SHORT_BYTES
from fairlead_gateway.upstream.usage import (
    GARBAGE,
    MAX_HIDDEN_BYTES,
    InBandError,
    TokenCounts,
    hide_accounts,
    parse_in_band_error,
)

_NAME: Final = b"event: "
_NEXT_NAME: Final = b"\nevent:"
_EVENT_END: Final = b"\n\n"
_END: Final = b"[DONE]"
_ERROR: Final = b"error"
_SEQUENCE_NUMBER: Final = re.compile(rb'"sequence_number"\s*:\s*(\d{1,15})\b')
_DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class NamedEventScanner(SseScanner):
    """The scanner of one stream, whose events have names."""

    __slots__ = ("_counts", "_grammar", "_has_ended", "_is_external", "_last_chunk")

    def __init__(self, grammar: EventGrammar, *, max_event_bytes: int, is_external: bool = False) -> None:
        super().__init__(strip_usage=False, max_event_bytes=max_event_bytes)
        self._grammar = grammar
        self._is_external = is_external
        self._counts = TokenCounts()
        self._last_chunk = b""
        self._has_ended = False

    @property
    def next_sequence_number(self) -> int:
        """One more than the number of the last event; 0 if events have none."""
        if not self._grammar.is_numbered:
            return 0
        numbers = _SEQUENCE_NUMBER.findall(self._last_chunk)
        return int(numbers[-1]) + 1 if numbers else 0

    @property
    def has_whole_answer(self) -> bool:
        return self._has_ended and bool(self._grammar.closing)

    def end(self, *, is_cut: bool = False) -> list[bytes]:
        """Returns what goes to the client when the body has ended; see `SseScanner.end`."""
        passed: list[bytes] = []
        if self._partial and not self.is_finished and not is_cut:
            event = bytes(self._partial) + b"\n\n"
            self._partial.clear()
            if _is_whole(event):
                self._read_event(event, passed)
        if self.has_whole_answer and not self.is_finished:
            passed.append(self._grammar.closing)
            self.is_done = True
        return passed

    def _count_unread(self, chunk: bytes) -> int:
        grammar = self._grammar
        if not chunk.startswith(_NAME) or not chunk[: chunk.find(b"\n")].endswith(grammar.delta):
            return 0
        further = chunk.count(_NEXT_NAME)
        if further and further != chunk.count(_NEXT_NAME + b" " + grammar.delta + b"\n"):
            return 0
        if chunk.count(_EVENT_END) > further + 1:  # some have no names
            return 0
        if grammar.is_numbered:
            self._last_chunk = numbered_part(chunk)
        return further + 1

    def _read_event(self, event: bytes, passed: list[bytes]) -> None:
        data, name = event_data(event), event_name(event)
        if name in PINGS and decode_members(data or b"") is None:
            event, data = COMMENT, None
        if not data:
            if self._passes_without_data(event):
                passed.append(event)
            return
        if data == _END:  # some engines send it behind the last event of any stream
            return
        grammar = self._grammar
        fields: NamedEvent | None = None
        if not name or name in grammar.finals or name == _ERROR or name == grammar.failed or not data.startswith(b"{"):
            try:
                fields = NAMED_EVENT_DECODER.decode(data)
            except _DECODE_ERRORS:
                self.error = InBandError(502, "the engine's stream holds an event that cannot be read", GARBAGE)
                return
            name = name or (fields.type or "").encode() or (b"" if fields.error is msgspec.UNSET else _ERROR)
        if name == _ERROR or name == grammar.failed:
            if self._is_external and len(event) > MAX_HIDDEN_BYTES:
                self.error = InBandError(502, "the provider's error is too long", GARBAGE)
                return
            response = None if fields is None else fields.response
            within = msgspec.UNSET if response is None else response.error
            self.error = parse_in_band_error(data if within is msgspec.UNSET else bytes(within), 500)
            passed.append(hide_accounts(event) if self._is_external else event)  # clients know it
            self._last_chunk = numbered_part(event)
            return
        if name.endswith(grammar.delta):
            self.event_count += 1
        elif fields is not None and name in grammar.finals:
            self._read_counts(name, fields)
        self.has_opening = True
        if not self.is_aborted:
            passed.append(event)
            self._last_chunk = numbered_part(event)

    def _read_counts(self, name: bytes, fields: NamedEvent) -> None:
        """Reads an event that reports counts, or ends the answer."""
        counts, delta = self._counts, fields.delta
        counts.add_event(fields.usage)
        for holder in (fields.message, fields.response):
            if holder is not None and not isinstance(holder, str):
                counts.add_event(holder.usage)
        is_last = name in self._grammar.last
        if isinstance(delta, StopDelta) and delta.stop_reason is not msgspec.UNSET:
            self.is_aborted = delta.stop_reason is None  # the engine gave the request up
            self._has_ended = True
        self._has_ended = self._has_ended or is_last
        self.usage = counts.usage(is_final=self._has_ended)
        self.is_done = is_last and not self.is_aborted


def numbered_part(events: bytes) -> bytes:
    """Returns short events as they are; of long ones, an event with their last sequence number."""
    if len(events) <= SHORT_BYTES:
        return events
    numbers = _SEQUENCE_NUMBER.findall(events)
    return b'data: {"sequence_number":%b}\n\n' % numbers[-1] if numbers else b""


def _is_whole(event: bytes) -> bool:
    """Whether the data of a last event, which lacks its empty line, is not cut."""
    data = event_data(event)
    if not data or data == _END:
        return data == _END
    return decode_members(data) is not None

"""An engine's answer, held back until it is clear that it is one, then passed on as it comes.

Nothing is sent to the client before the *verdict*: a plain answer is whole, or too long to hold; a stream has produced its
first event, and that is no error (an engine that is full answers a stream with 200 and an error event). Until then the
request can go elsewhere. From then on pieces pass straight from connection to connection, and ``ended`` says how it ended.
"""

import asyncio
from collections.abc import Callable

from fairlead.clock import Clock
from fairlead.limits import Limits
from fairlead_gateway.events import Events, first_event
from fairlead_gateway.reply import Reply
from fairlead_gateway.upstream import Broken


class Answer:
    """One engine's answer to one request; the ``Sink`` of its connection. What only streams need, or only who waits, is made when it
    is asked for: most answers are plain, and told to ``decided``."""

    def __init__(
        self,
        *,
        stream: bool,
        strip: bool,
        clock: Clock,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        silent: Callable[[], float],
        decided: Callable[[Broken | None], None] | None = None,
    ) -> None:
        self._wanted = stream
        self._strip = strip
        self._now = clock.now
        self._limits = limits
        self._loop = loop
        self.silent = silent
        self.rewrite: Callable[[list[bytes]], list[bytes]] | None = None
        self.rewrite_plain: Callable[[list[bytes], bool], list[bytes]] | None = None
        self.told: Callable[[list[bytes]], None] | None = None
        self._held: list[bytes] = []
        self._size = 0
        self._reply: Reply | None = None
        self._gap: Callable[[float], None] | None = None
        self.complete = False
        self.paused = False
        self.status = 0
        self.fields: dict[bytes, bytes] = {}
        self.stream = self._live = False
        self.opaque = False  # not read here: a stream in a language of its own is passed on as it comes
        self._events: Events | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None
        self._decided = decided
        self._open = True
        self._verdict: asyncio.Future[Broken | None] | None = None if decided is not None else loop.create_future()
        self._over = False
        self._why: str | None = None
        self._ended: asyncio.Future[str | None] | None = None

    @property
    def events(self) -> Events:
        """What is known of its stream."""
        events = self._events
        if events is None:
            events = self._events = Events(strip=self._strip, limit=self._limits.sse_event_bytes)
        return events

    @property
    def ended(self) -> "asyncio.Future[str | None]":
        """Done when everything has been passed on, or nothing more will be: None or what went wrong."""
        ended = self._ended
        if ended is None:
            ended = self._ended = self._loop.create_future()
            if self._over:
                ended.set_result(self._why)
        return ended

    @property
    def verdict(self) -> "asyncio.Future[Broken | None]":
        """None when the answer can be passed on, else what went wrong; only where nobody else is told."""
        assert self._verdict is not None
        return self._verdict

    @property
    def whole_body(self) -> bytes:
        """What is held of a plain answer."""
        return b"".join(self._held)

    def pass_to(self, reply: Reply, gap: Callable[[float], None]) -> None:
        """Send what is held and everything that follows; ``gap`` is told the seconds between pieces of a stream."""
        held, self._held = self._held, []
        self._reply = reply
        self._gap = gap
        if self.stream:
            self._send_events(held)
        else:
            self._send_plain(held)

    # What the connection to the engine calls.

    def head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """The head decides whether this is a stream."""
        self.status = status
        self.fields = fields
        if status == 200 and (self._wanted or self.opaque):
            events = fields.get(b"content-type", b"").lower().startswith(b"text/event-stream")
            self.stream = self._wanted and events
            self._live = events and self.opaque

    def body(self, pieces: list[bytes], complete: bool) -> None:
        """Hold, or pass on."""
        if self._over or (self._ended is not None and self._ended.done()):  # whoever waited may have been cancelled
            return
        self.complete = complete
        now = self._now()
        if not self.stream:
            self._plain(pieces, now)
        elif self._reply is not None:
            out = self.events.passing(pieces)
            if out and self._gap is not None and self.last_at is not None:
                self._gap(now - self.last_at)
                self.last_at = now
            self._send_events(out)
        else:
            self._held += self.events.passing(pieces) if self._held else first_event(self.events, pieces)
            if self._held or self.events.ended or complete:
                self._first(now)

    def broken(self, error: Broken) -> None:
        """The connection broke: before the verdict that is the verdict, after it the end."""
        if self._open:
            self._decide(error)
        else:
            self._end(error.why)

    # Passing on.

    def _plain(self, pieces: list[bytes], now: float) -> None:
        if self._reply is not None:
            self._send_plain(pieces)
            return
        self._held += pieces
        for piece in pieces:
            self._size += len(piece)
        if self.status != 200 and self._size > self._limits.answer_held_bytes:
            self._held = []
            self.broken(Broken("garbage"))  # no error is that long, and what is held must have an end
        elif self.complete or self._live or self._size > self._limits.answer_held_bytes:
            self._first(now)

    def _first(self, now: float) -> None:
        if self._open:
            self.first_at = self.last_at = now
            self._decide(None)

    def _decide(self, error: Broken | None) -> None:
        self._open = False
        if self._verdict is None:
            assert self._decided is not None
            decided, self._decided = self._decided, None
            decided(error)
        elif not self._verdict.done():
            self._verdict.set_result(error)

    def _send_plain(self, pieces: list[bytes]) -> None:
        assert self._reply is not None
        if self.rewrite_plain is not None:
            pieces = self.rewrite_plain(pieces, self.complete)
        self._reply.pieces(pieces, last=self.complete)
        if self.complete:
            self._end(None)

    def _send_events(self, events: list[bytes]) -> None:
        assert self._reply is not None
        state = self.events
        if self.rewrite is not None:
            events = self.rewrite(events)
        if self.told is not None:
            self.told(events)
        if state.done:
            self._reply.pieces(events, last=True)
            self._end(None)
            return
        if events:
            self._reply.pieces(events)
        if state.fault is not None:
            self._end("error-event")
        elif state.aborted:
            self._end("aborted")
        elif self.complete:
            self._end("cut")

    def _end(self, why: str | None) -> None:
        if not self._over:
            self._over = True
            self._why = why
            if self._ended is not None and not self._ended.done():
                self._ended.set_result(why)

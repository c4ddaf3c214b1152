"""An event loop in simulated time: its clock jumps to the next timer when no socket is ready.

Hours pass in milliseconds, and two runs of a test see the same order of events. All sockets must
belong to the loop's own process, and no thread may work for it.
"""

import asyncio
import selectors
from asyncio import selector_events
from collections.abc import Awaitable, Callable
from typing import Any

from fairlead_testing.simulated.link import LinkSocket, linked_sockets

MAX_TURNS = 20_000
WALL_OFFSET = 1_800_000_000.0


class _InstantSelector(selectors.DefaultSelector):
    """A selector that never waits. `now` is the simulated time.

    Raises AssertionError if the loop does not rest for many turns, or if it would rest for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.turns = 0
        self.on_advance: Callable[[], None] = lambda: None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Returns the sockets that are ready; if there are none, advances the clock."""
        ready = super().select(0)
        self.turns += 1
        if self.turns > MAX_TURNS:
            raise AssertionError("the event loop is busy without end")
        if not ready and timeout != 0:
            if timeout is None:
                raise AssertionError("the event loop waits for nothing")
            self.on_advance()
            self.turns = 0
            self.now += timeout
        return ready


class StrictTransport(selector_events._SelectorSocketTransport):  # type: ignore[misc, name-defined]
    """A transport that, like uvloop's, raises for uses after it has been closed."""

    is_lost = False

    def _call_connection_lost(self, error: Exception | None) -> None:
        try:
            super()._call_connection_lost(error)
        finally:
            self.is_lost = True

    def _check(self) -> None:
        if self.is_lost:
            raise RuntimeError("the transport is closed")

    def write(self, data: bytes) -> None:
        """Sends bytes."""
        self._check()
        super().write(data)

    def write_eof(self) -> None:
        """Ends the sending direction."""
        self._check()
        super().write_eof()

    def pause_reading(self) -> None:
        """Stops reading."""
        self._check()
        super().pause_reading()

    def resume_reading(self) -> None:
        """Reads on after a pause; raises after the end."""
        self._check()
        super().resume_reading()


class SimulatedLoop(asyncio.SelectorEventLoop):
    """The event loop of a test, and a clock that shows its time.

    listeners: by host and port, called with the listener's end of each new connection. It may wait,
        and raises OSError to refuse.
    transports: all that were made.
    errors: what was reported to the loop's exception handler.
    """

    def __init__(self) -> None:
        self.simulated = _InstantSelector()
        super().__init__(self.simulated)
        self.listeners: dict[tuple[str, int], Callable[[LinkSocket], Awaitable[None]]] = {}
        self.transports: list[StrictTransport] = []
        self.errors: list[str] = []
        self.set_exception_handler(self._on_error)

    def time(self) -> float:
        """Returns the simulated monotonic seconds."""
        return self.simulated.now

    def now(self) -> float:
        """Returns the same, as a clock of Fairlead."""
        return self.simulated.now

    def wall(self) -> float:
        """Returns the simulated Unix seconds."""
        return self.simulated.now + WALL_OFFSET

    def live_timers(self) -> list[str]:
        """Returns the timers that are due in future, as text."""
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return [repr(timer) for timer in timers if not timer.cancelled()]

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        """Connects to one of `listeners`."""
        listener = self.listeners.get((host, port))
        if listener is None:
            raise ConnectionRefusedError
        near, far = linked_sockets()
        try:
            await listener(far)
        except BaseException:
            near.close()
            far.close()
            raise
        return await super().create_connection(protocol_factory, sock=near)

    def _make_socket_transport(
        self, sock: Any, protocol: Any, waiter: Any = None, *, extra: Any = None, server: Any = None
    ) -> StrictTransport:
        transport = StrictTransport(self, sock, protocol, waiter, extra, server)
        self.transports.append(transport)
        return transport

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

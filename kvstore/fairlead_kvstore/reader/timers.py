"""Time as the reader uses it: something later, and something soon. A running event loop is both; tests bring their own."""

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """What was asked for, while it may still be taken back."""

    def cancel(self) -> None:
        """Forget it; also when it is over."""
        ...


class ReaderLoop(Protocol):
    """What the reader needs of an event loop; ``asyncio`` loops have it."""

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        """Call once, ``delay`` seconds from now."""
        ...

    def call_soon(self, callback: Callable[[], object], /) -> Timer:
        """Call once, in the next turn of the loop."""
        ...

    def add_reader(self, fd: int, callback: Callable[[], object], /) -> None:
        """Call whenever ``fd`` becomes readable."""
        ...

    def remove_reader(self, fd: int, /) -> object:
        """No longer."""
        ...


class OneShotTimer:
    """One thing that is due at most once: setting it again replaces what was set before."""

    def __init__(self, loop: ReaderLoop) -> None:
        self._loop = loop
        self._timer: Timer | None = None

    @property
    def is_set(self) -> bool:
        """Whether it is set and has not rung."""
        return self._timer is not None

    def set(self, seconds: float, callback: Callable[[], object]) -> None:
        """Ring in so many seconds."""
        self.clear()

        def rung() -> None:
            self._timer = None
            callback()

        self._timer = self._loop.call_later(seconds, rung)

    def clear(self) -> None:
        """Do not ring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

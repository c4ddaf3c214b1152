"""Sleep and waking of a simulated engine, as vLLM's sleep mode has them.

Level 1 keeps the weights in host memory and level 2 forgets them; the KV cache goes with both. Waking brings parts back, all of
them or those that are named, and the engine sleeps until it has all. After level 2 the memory of the weights comes back with
nothing in it: until ``reload_weights`` an engine that was woken answers nonsense, and does not say so.
"""

from collections.abc import Callable

PARTS = frozenset({"weights", "kv_cache"})
Later = Callable[[float, Callable[[], None]], object]


class Slumber:
    """``level`` is None while the engine is awake; ``hollow``: its weights are gone and were not loaded anew. ``later`` calls after
    so many seconds; ``woken`` is called when the last part is back."""

    def __init__(self, wake_seconds: float, reload_seconds: float, later: Later, woken: Callable[[], None]) -> None:
        self.level: int | None = None
        self.hollow = False
        self._wake_seconds = wake_seconds
        self._reload_seconds = reload_seconds
        self._later = later
        self._woken = woken
        self._gone: frozenset[str] = frozenset()
        self._falls = 0

    def fall(self, level: int) -> None:
        """Asleep from now on."""
        self._falls += 1
        self.level = level
        self._gone = PARTS if level >= 1 else frozenset()
        self.hollow = self.hollow or level == 2

    def wake(self, parts: frozenset[str], done: Callable[[], None]) -> None:
        """Bring ``parts`` back; ``done`` follows when they are. One that is put to sleep meanwhile stays asleep."""
        falls, slow = self._falls, self.level == 1 and "weights" in parts & self._gone

        def back() -> None:
            if falls == self._falls:
                self._gone -= parts
                if not self._gone:  # of one that did not sleep, too: what was paused goes on
                    self.level = None
                    self._woken()
            done()

        self._after(self._wake_seconds if slow else 0.0, back)

    def reload(self, done: Callable[[], None]) -> None:
        """Load the weights anew; ``done`` follows."""
        falls = self._falls

        def loaded() -> None:
            self.hollow = self.hollow and falls != self._falls
            done()

        self._after(self._reload_seconds, loaded)

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        if seconds > 0.0:
            self._later(seconds, call)
        else:
            call()

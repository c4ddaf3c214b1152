"""Sleep and waking of a simulated engine, as vLLM's sleep mode has them.

Level 1 keeps the weights in host memory and level 2 forgets them; the KV cache goes with both. Waking brings parts back, all of
them or those that are named, and the engine sleeps until it has all. After level 2 the memory of the weights comes back with
nothing in it: until ``reload_weights`` an engine that was woken answers nonsense, and does not say so.
"""

from collections.abc import Callable

MEMORY_PARTS = frozenset({"weights", "kv_cache"})
Schedule = Callable[[float, Callable[[], None]], object]


class SleepMode:
    """``level`` is None while the engine is awake; ``hollow``: its weights are gone and were not loaded anew. ``later`` calls after
    so many seconds; ``woken`` is called when the last part is back."""

    def __init__(
        self, wake_seconds: float, reload_seconds: float, schedule: Schedule, on_woken: Callable[[], None]
    ) -> None:
        self.level: int | None = None
        self.weights_missing = False
        self._wake_seconds = wake_seconds
        self._reload_seconds = reload_seconds
        self._schedule = schedule
        self._on_woken = on_woken
        self._missing_parts: frozenset[str] = frozenset()
        self._sleep_count = 0

    def fall_asleep(self, level: int) -> None:
        """Asleep from now on."""
        self._sleep_count += 1
        self.level = level
        self._missing_parts = MEMORY_PARTS if level >= 1 else frozenset()
        self.weights_missing = self.weights_missing or level == 2

    def wake_up(self, parts: frozenset[str], done: Callable[[], None]) -> None:
        """Bring ``parts`` back; ``done`` follows when they are. One that is put to sleep meanwhile stays asleep."""
        falls, slow = self._sleep_count, self.level == 1 and "weights" in parts & self._missing_parts

        def back() -> None:
            if falls == self._sleep_count:
                self._missing_parts -= parts
                if not self._missing_parts:  # of one that did not sleep, too: what was paused goes on
                    self.level = None
                    self._on_woken()
            done()

        self._call_after(self._wake_seconds if slow else 0.0, back)

    def reload_weights(self, done: Callable[[], None]) -> None:
        """Load the weights anew; ``done`` follows."""
        falls = self._sleep_count

        def loaded() -> None:
            self.weights_missing = self.weights_missing and falls != self._sleep_count
            done()

        self._call_after(self._reload_seconds, loaded)

    def _call_after(self, seconds: float, call: Callable[[], None]) -> None:
        if seconds > 0.0:
            self._schedule(seconds, call)
        else:
            call()

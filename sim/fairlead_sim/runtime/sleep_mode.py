"""The sleep mode of a simulated engine, as in vLLM.

Level 1 keeps the weights in host memory, level 2 drops them; both drop the KV cache. A wake-up
restores all parts or the named ones, and the engine sleeps until it has all. After level 2 the
weights' memory is empty: until ``reload_weights`` an awake engine answers nonsense without an
error.
"""

from collections.abc import Callable

MEMORY_PARTS = frozenset({"weights", "kv_cache"})
Schedule = Callable[[float, Callable[[], None]], object]


class SleepMode:
    """The sleep state of one engine.

    - level: None while awake.
    - weights_missing: the weights were dropped and not loaded again.
    """

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
        self._sleep_count += 1
        self.level = level
        self._missing_parts = MEMORY_PARTS if level >= 1 else frozenset()
        self.weights_missing = self.weights_missing or level == 2

    def wake_up(self, parts: frozenset[str], done: Callable[[], None]) -> None:
        """Restores ``parts`` and then calls ``done``. An engine that has all parts resumes.

        An engine that fell asleep meanwhile stays asleep.
        """
        falls, slow = self._sleep_count, self.level == 1 and "weights" in parts & self._missing_parts

        def back() -> None:
            if falls == self._sleep_count:
                self._missing_parts -= parts
                if not self._missing_parts:  # also for an engine that did not sleep: paused requests continue
                    self.level = None
                    self._on_woken()
            done()

        self._call_after(self._wake_seconds if slow else 0.0, back)

    def reload_weights(self, done: Callable[[], None]) -> None:
        """Loads the weights and then calls ``done``."""
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

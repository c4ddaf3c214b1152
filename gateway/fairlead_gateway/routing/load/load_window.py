"""What each instance was given in the last minutes, for rules that go by that and not by what is in flight (``presets.preble``).

Every dispatch counts at its instance for ``WINDOW_SECONDS`` from then on, with the seconds and the tokens that were not cached there.
Answers say how long answers are and what a token of one takes at each instance; until the first one, the constants of Preble's public
code stand for them.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

WINDOW_SECONDS: Final = 180.0
DEFAULT_OUTPUT_TOKENS: Final = 45.0
DEFAULT_TOKEN_SECONDS: Final = 0.15
"""How long an answer is and what a token of it takes, before there was one."""
MAX_ANSWERS: Final = 200
"""So many of the last answers count."""


class _EndpointWindow:
    """One instance's: what was sent there, by time, with its sums, and what a token of an answer takes there."""

    __slots__ = ("dispatches", "seconds", "token_seconds", "token_times", "uncached_tokens")

    def __init__(self) -> None:
        self.dispatches: deque[tuple[float, float, float]] = deque()
        self.seconds = self.uncached_tokens = 0.0
        self.token_times: deque[float] = deque([DEFAULT_TOKEN_SECONDS], maxlen=MAX_ANSWERS)
        self.token_seconds = DEFAULT_TOKEN_SECONDS


class LoadWindow:
    """Of one model. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._windows: dict[str, _EndpointWindow] = {}
        self._started_at: dict[str, float] = {}
        self._output_tokens: deque[float] = deque(maxlen=MAX_ANSWERS)

    def retain(self, instances: dict[str, float]) -> None:
        """Those that are gone are forgotten."""
        self._windows = {name: here for name, here in self._windows.items() if name in instances}

    def on_dispatch(self, instance: str, seconds: float, uncached_tokens: float, now: float) -> None:
        """A prompt goes there, of which so many tokens are not cached, which take so many seconds."""
        window = self._window(instance, now)
        window.dispatches.append((now, seconds, uncached_tokens))
        window.seconds += seconds
        window.uncached_tokens += uncached_tokens

    def on_first_token(self, request_id: str, now: float) -> None:
        """Its answer begins."""
        self._started_at[request_id] = now

    def on_finish(self, request_id: str, instance: str, output_tokens: int | None, now: float) -> None:
        """It is over. An answer of one token has no pace, and one that failed (None) says nothing."""
        started_at = self._started_at.pop(request_id, None)
        if started_at is None or output_tokens is None or output_tokens < 2:
            return
        self._output_tokens.append(float(output_tokens))
        window = self._window(instance, now)
        window.token_times.append((now - started_at) / (output_tokens - 1))
        window.token_seconds = median(window.token_times)

    def load_seconds(self, instance: str, inflight: int, now: float) -> float:
        """Seconds: prefill that was sent there within the window, and the answers of all that is in flight."""
        window = self._window(instance, now)
        output = sum(self._output_tokens) / len(self._output_tokens) if self._output_tokens else DEFAULT_OUTPUT_TOKENS
        return window.seconds + inflight * output * window.token_seconds

    def eviction_seconds(self, instance: str, uncached_tokens: float, kv_tokens: int, now: float) -> float:
        """Seconds to compute again what has to go for so many new tokens, as far as it was used within the window: what is older has
        nobody who asked for it. By what tokens took on average there."""
        window = self._window(instance, now)
        evicted = min(window.uncached_tokens, uncached_tokens, window.uncached_tokens + uncached_tokens - kv_tokens)
        return window.seconds / window.uncached_tokens * evicted if evicted > 0.0 else 0.0

    def _window(self, instance: str, now: float) -> _EndpointWindow:
        window = self._windows.get(instance)
        if window is None:
            window = self._windows[instance] = _EndpointWindow()
        dispatches = window.dispatches
        while dispatches and dispatches[0][0] <= now - WINDOW_SECONDS:
            _, seconds, tokens = dispatches.popleft()
            window.seconds -= seconds
            window.uncached_tokens -= tokens
        if not dispatches:
            window.seconds = window.uncached_tokens = 0.0  # rounding ends with the last one
        return window


def median(values: Iterable[float]) -> float:
    """Of at least one; of an even number the mean of the two in the middle."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

"""The window of dispatches to each instance in the last minutes, used by `policies.preble`.

Every dispatch counts at its instance for `WINDOW_SECONDS`, with its seconds and its uncached
tokens. Responses show how long outputs are, and the time per token of each instance.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

WINDOW_SECONDS: Final = 180.0
DEFAULT_OUTPUT_TOKENS: Final = 45.0
DEFAULT_TOKEN_SECONDS: Final = 0.15
"""Output length and time per token before the first response; constants of Preble's public code."""
MAX_ANSWERS: Final = 200
"""So many of the last responses count."""


class _EndpointWindow:
    """The window of one instance: its dispatches with their sums, and its times per token."""

    __slots__ = ("dispatches", "seconds", "token_seconds", "token_times", "uncached_tokens")

    def __init__(self) -> None:
        self.dispatches: deque[tuple[float, float, float]] = deque()
        self.seconds = self.uncached_tokens = 0.0
        self.token_times: deque[float] = deque([DEFAULT_TOKEN_SECONDS], maxlen=MAX_ANSWERS)
        self.token_seconds = DEFAULT_TOKEN_SECONDS


class LoadWindow:
    """The recent dispatches of one model, by instance. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._windows: dict[str, _EndpointWindow] = {}
        self._started_at: dict[str, float] = {}
        self._output_tokens: deque[float] = deque(maxlen=MAX_ANSWERS)

    def retain(self, instances: dict[str, float]) -> None:
        self._windows = {name: here for name, here in self._windows.items() if name in instances}

    def on_dispatch(self, instance: str, seconds: float, uncached_tokens: float, now: float) -> None:
        """Counts a prompt whose `uncached_tokens` tokens take `seconds` to prefill."""
        window = self._window(instance, now)
        window.dispatches.append((now, seconds, uncached_tokens))
        window.seconds += seconds
        window.uncached_tokens += uncached_tokens

    def on_first_token(self, request_id: str, now: float) -> None:
        self._started_at[request_id] = now

    def on_finish(self, request_id: str, instance: str, output_tokens: int | None, now: float) -> None:
        """Learns output length and time per token from a finished request.

        output_tokens: None if the request failed. Outputs of fewer than two tokens are ignored.
        """
        started_at = self._started_at.pop(request_id, None)
        if started_at is None or output_tokens is None or output_tokens < 2:
            return
        self._output_tokens.append(float(output_tokens))
        window = self._window(instance, now)
        window.token_times.append((now - started_at) / (output_tokens - 1))
        window.token_seconds = median(window.token_times)

    def load_seconds(self, instance: str, inflight: int, now: float) -> float:
        """Returns the prefill of the window, plus the expected output of all in flight,
        in seconds.
        """
        window = self._window(instance, now)
        output = sum(self._output_tokens) / len(self._output_tokens) if self._output_tokens else DEFAULT_OUTPUT_TOKENS
        return window.seconds + inflight * output * window.token_seconds

    def eviction_seconds(self, instance: str, uncached_tokens: float, kv_tokens: int, now: float) -> float:
        """Returns the seconds to recompute the cached tokens that `uncached_tokens` new tokens
        evict.

        Only tokens used within the window count, at the instance's mean seconds per token.
        """
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
            window.seconds = window.uncached_tokens = 0.0  # drops rounding errors
        return window


def median(values: Iterable[float]) -> float:
    """Returns the median of at least one value.

    Why: importing `statistics` for this alone costs memory in every process.
    """
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

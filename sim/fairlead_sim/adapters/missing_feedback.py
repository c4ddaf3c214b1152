"""Completion inference for tools that report routing decisions but no completions.

Feedback is optional in the seam. Once ``INFERENCE_REQUESTS`` requests were routed and none was
reported complete, each counts as complete ``INFERENCE_SECONDS`` after its first token. For a tool
that reports no first tokens either, the time counts from the pick. The first real completion ends
the inference: from then on a request without a completion counts as running.

Why: without completions every request would stay in the load forever and weigh on its endpoint.
"""

from collections import deque
from typing import Final

INFERENCE_SECONDS: Final = 10.0
INFERENCE_REQUESTS: Final = 200
"""A bound that a person who tries some picks by hand does not reach."""


class CompletionInference:
    """The inference of completions, until the tool reports its first one."""

    def __init__(self) -> None:
        self._reports_first_tokens = False
        self._reports_completions = False
        self._last: dict[str, float] = {}
        self._due: deque[tuple[float, str, bool]] = deque()
        self._sent = 0
        self.is_inferring = False

    def on_routed(self, request: str, now: float) -> None:
        self._sent += 1
        self._note(request, now, began=False)

    def on_first_token(self, request: str, now: float) -> None:
        self._reports_first_tokens = True
        self._note(request, now, began=True)

    def on_complete(self) -> None:
        """Ends the inference: the tool reports completions."""
        if not self._reports_completions:
            self._reports_completions, self.is_inferring = True, False
            self._due.clear()
            self._last.clear()

    def infer_completed(self, now: float) -> list[str]:
        """Removes and returns the requests that count as complete now.

        Sets ``is_inferring`` if there are any.
        """
        completed: list[str] = []
        if self._sent < INFERENCE_REQUESTS:
            return completed
        while self._due and self._due[0][0] + INFERENCE_SECONDS <= now:
            at, request, began = self._due.popleft()
            if self._last.get(request) == at and (began or not self._reports_first_tokens):
                del self._last[request]
                completed.append(request)
        self.is_inferring = self.is_inferring or bool(completed)
        return completed

    def _note(self, request: str, now: float, *, began: bool) -> None:
        if not self._reports_completions:
            self._last[request] = now
            self._due.append((now, request, began))

"""What to make of a tool that does not say how requests go on: feedback is optional.

A request that was never said to be over stays in the ledger and weighs on its endpoint for ever, and what was sent looks more
than what the tool counts. So, when the tool was given ``SILENT_REQUESTS`` and has said of none that it is over, each is taken as
over ``SILENT_SECONDS`` after its first token, and where no first token was ever told either, after its pick. One word of an end,
and nothing is assumed any more: an engine may be slow.
"""

from collections import deque
from typing import Final

INFERENCE_SECONDS: Final = 10.0
INFERENCE_REQUESTS: Final = 200
"""So many, for a tool that tries a few picks by hand is not silent."""


class CompletionInference:
    """The requests of a tool that has told no end yet."""

    def __init__(self) -> None:
        self._reports_first_tokens = False
        self._reports_completions = False
        self._last: dict[str, float] = {}
        self._due: deque[tuple[float, str, bool]] = deque()
        self._sent = 0
        self.is_inferring = False

    def on_routed(self, request: str, now: float) -> None:
        """It was picked."""
        self._sent += 1
        self._note(request, now, began=False)

    def on_first_token(self, request: str, now: float) -> None:
        """Its first token was told."""
        self._reports_first_tokens = True
        self._note(request, now, began=True)

    def on_complete(self) -> None:
        """Some request's end was told: the tool tells them."""
        if not self._reports_completions:
            self._reports_completions, self.is_inferring = True, False
            self._due.clear()
            self._last.clear()

    def infer_completed(self, now: float) -> list[str]:
        """Those that are to be taken as over; ``deaf`` from the first one on, as long as no end is told."""
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

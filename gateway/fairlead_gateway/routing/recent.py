"""What each instance was given in the last minutes, for rules that go by that and not by what is in flight (``presets.preble``).

Every dispatch counts at its instance for ``WINDOW_SECONDS`` from then on, with the seconds and the tokens that were not cached there.
Answers say how long answers are and what a token of one takes at each instance; until the first one, the constants of Preble's public
code stand for them.
"""

from collections import deque
from typing import Final

from fairlead.median import median

WINDOW_SECONDS: Final = 180.0
OUTPUT_TOKENS: Final = 45.0
TOKEN_SECONDS: Final = 0.15
"""How long an answer is and what a token of it takes, before there was one."""
ANSWERS: Final = 200
"""So many of the last answers count."""


class _Here:
    """One instance's: what was sent there, by time, with its sums, and what a token of an answer takes there."""

    __slots__ = ("missed_tokens", "pace", "paces", "seconds", "sent")

    def __init__(self) -> None:
        self.sent: deque[tuple[float, float, float]] = deque()
        self.seconds = self.missed_tokens = 0.0
        self.paces: deque[float] = deque([TOKEN_SECONDS], maxlen=ANSWERS)
        self.pace = TOKEN_SECONDS


class Recent:
    """Of one model. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._here: dict[str, _Here] = {}
        self._began: dict[str, float] = {}
        self._outputs: deque[float] = deque(maxlen=ANSWERS)

    def keep(self, instances: dict[str, float]) -> None:
        """Those that are gone are forgotten."""
        self._here = {name: here for name, here in self._here.items() if name in instances}

    def sent(self, instance: str, seconds: float, missed_tokens: float, now: float) -> None:
        """A prompt goes there, of which so many tokens are not cached, which take so many seconds."""
        here = self._at(instance, now)
        here.sent.append((now, seconds, missed_tokens))
        here.seconds += seconds
        here.missed_tokens += missed_tokens

    def first_token(self, request: str, now: float) -> None:
        """Its answer begins."""
        self._began[request] = now

    def ended(self, request: str, instance: str, output_tokens: int | None, now: float) -> None:
        """It is over. An answer of one token has no pace, and one that failed (None) says nothing."""
        began = self._began.pop(request, None)
        if began is None or output_tokens is None or output_tokens < 2:
            return
        self._outputs.append(float(output_tokens))
        here = self._at(instance, now)
        here.paces.append((now - began) / (output_tokens - 1))
        here.pace = median(here.paces)

    def load(self, instance: str, inflight: int, now: float) -> float:
        """Seconds: prefill that was sent there within the window, and the answers of all that is in flight."""
        here = self._at(instance, now)
        output = sum(self._outputs) / len(self._outputs) if self._outputs else OUTPUT_TOKENS
        return here.seconds + inflight * output * here.pace

    def eviction(self, instance: str, missed_tokens: float, kv_tokens: int, now: float) -> float:
        """Seconds to compute again what has to go for so many new tokens, as far as it was used within the window: what is older has
        nobody who asked for it. By what tokens took on average there."""
        here = self._at(instance, now)
        gone = min(here.missed_tokens, missed_tokens, here.missed_tokens + missed_tokens - kv_tokens)
        return here.seconds / here.missed_tokens * gone if gone > 0.0 else 0.0

    def _at(self, instance: str, now: float) -> _Here:
        here = self._here.get(instance)
        if here is None:
            here = self._here[instance] = _Here()
        sent = here.sent
        while sent and sent[0][0] <= now - WINDOW_SECONDS:
            _, seconds, tokens = sent.popleft()
            here.seconds -= seconds
            here.missed_tokens -= tokens
        if not sent:
            here.seconds = here.missed_tokens = 0.0  # rounding ends with the last one
        return here

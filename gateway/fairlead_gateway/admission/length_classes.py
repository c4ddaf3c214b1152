"""How many engines may be at long prompts at once: soft pools by length.

A short prompt behind a long one waits for all of it, and most of those that wait are short. Fixed pools are worse still: whichever
pool has too much misses its objectives while the other idles. So no engine belongs to a class here. *Long* is a prompt
whose prefill takes more than half of the tightest objective of the last minutes; what is bounded is how many engines may be at long
ones at the same time, so that the others are there for the short ones that come meanwhile. The bound is the share of long prompts
in the work of the last half minute, so that neither class pays for the other's overload, and one more (long prompts come in
bursts, and engines that are kept idle for short ones are lost) until a short one that waits is too late for that. Where the fleet has
more than both need, what is over goes to those that cannot wait: long prompts get no more engines than their work keeps
``LONG_BUSY`` busy, unless the short ones would be no more than ``SHORT_BUSY`` busy on the rest.

Measured (six thousand requests): where long prompts go as others do, the highest load at which both classes keep their objectives
is 0.8 to 0.9 of what the engines can compute, in whatever order they go; where each goes to an engine of nothing else (``gate``),
0.99 by deadline alone and 1.02 by the order and the bound. A bound from the short prompts' need alone starves the long ones near
saturation. By the share alone the short class of LAPS' mix (load 0.7) had 1.4 times the p90 of a fleet without long prompts; by all
of it 1.1, and the long ones keep theirs.

Source: LAPS (arXiv 2601.11589) for the two classes and the moving bound; ours: seconds of the uncached part instead of
tokens, and a bound on what runs instead of a set of engines.
"""

import math
from typing import Final

LONG_SHARE: Final = 0.5
LONG_UTILIZATION: Final = 0.9
SHORT_UTILIZATION: Final = 0.4
"""How busy engines may be that are kept for one class: objectives of long prompts let them wait a little."""
WINDOW_SECONDS: Final = 30.0
_ROLL_SECONDS: Final = 60.0


class LengthClasses:
    """What came lately, of one model."""

    def __init__(self) -> None:
        self._short_seconds = self._long_seconds = 0.0
        self._updated_at = 0.0
        self._started_at: float | None = None
        self._tightest = self._former_tightest = math.inf
        self._loosest = self._former_loosest = 0.0
        self._rolled_at = 0.0

    def classify(self, objective_seconds: float, prefill_seconds: float, now: float) -> bool:
        """A request came; whether it is long."""
        if self._started_at is None:
            self._started_at = self._rolled_at = self._updated_at = now
        if now - self._rolled_at >= _ROLL_SECONDS:
            self._former_tightest, self._former_loosest = self._tightest, self._loosest
            self._tightest, self._loosest, self._rolled_at = math.inf, 0.0, now
        self._tightest = min(self._tightest, objective_seconds)
        self._loosest = max(self._loosest, objective_seconds)
        long = prefill_seconds > self.boundary_seconds
        self._fade(now)
        if long:
            self._long_seconds += prefill_seconds
        else:
            self._short_seconds += prefill_seconds
        return long

    @property
    def boundary_seconds(self) -> float:
        """A prompt whose prefill takes longer is long."""
        return LONG_SHARE * min(self._tightest, self._former_tightest)

    @property
    def objective_spread(self) -> float:
        """The loosest objective of the last minutes over the tightest; 1 where there is one."""
        tightest = min(self._tightest, self._former_tightest)
        return max(self._loosest, self._former_loosest) / tightest if 0.0 < tightest < math.inf else 1.0

    def max_long_engines(self, engines: int, now: float, *, short_late: bool = False) -> int:
        """How many of so many engines may be at long prompts at once; one at least. ``short_late``: some short one that waits cannot
        meet its objective any more."""
        self._fade(now)
        both = self._short_seconds + self._long_seconds
        if both <= 0.0:
            return engines
        bound = min(engines, round(engines * self._long_seconds / both) + (not short_late))
        window_seconds = (
            0.0 if self._started_at is None else -math.expm1((self._started_at - now) / WINDOW_SECONDS) * WINDOW_SECONDS
        )
        if window_seconds > 0.0:  # what fades with that window is so much a second
            needed = math.ceil(self._long_seconds / window_seconds / LONG_UTILIZATION)
            bound = min(bound, max(needed, engines - round(self._short_seconds / window_seconds / SHORT_UTILIZATION)))
        return max(1, bound)

    def _fade(self, now: float) -> None:
        if now > self._updated_at:
            fade = math.exp((self._updated_at - now) / WINDOW_SECONDS)
            self._short_seconds *= fade
            self._long_seconds *= fade
            self._updated_at = now

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
LONG_BUSY: Final = 0.9
SHORT_BUSY: Final = 0.4
"""How busy engines may be that are kept for one class: objectives of long prompts let them wait a little."""
WINDOW_SECONDS: Final = 30.0
_MINUTES: Final = 60.0


class Pools:
    """What came lately, of one model."""

    def __init__(self) -> None:
        self._short = self._long = 0.0
        self._at = 0.0
        self._since: float | None = None
        self._tightest = self._tightest_before = math.inf
        self._loosest = self._loosest_before = 0.0
        self._rolled = 0.0

    def arrived(self, objective_seconds: float, own_seconds: float, now: float) -> bool:
        """A request came; whether it is long."""
        if self._since is None:
            self._since = self._rolled = self._at = now
        if now - self._rolled >= _MINUTES:
            self._tightest_before, self._loosest_before = self._tightest, self._loosest
            self._tightest, self._loosest, self._rolled = math.inf, 0.0, now
        self._tightest = min(self._tightest, objective_seconds)
        self._loosest = max(self._loosest, objective_seconds)
        long = own_seconds > self.boundary_seconds
        self._fade(now)
        if long:
            self._long += own_seconds
        else:
            self._short += own_seconds
        return long

    @property
    def boundary_seconds(self) -> float:
        """A prompt whose prefill takes longer is long."""
        return LONG_SHARE * min(self._tightest, self._tightest_before)

    @property
    def spread(self) -> float:
        """The loosest objective of the last minutes over the tightest; 1 where there is one."""
        tightest = min(self._tightest, self._tightest_before)
        return max(self._loosest, self._loosest_before) / tightest if 0.0 < tightest < math.inf else 1.0

    def long_engines(self, engines: int, now: float, *, short_late: bool = False) -> int:
        """How many of so many engines may be at long prompts at once; one at least. ``short_late``: some short one that waits cannot
        meet its objective any more."""
        self._fade(now)
        both = self._short + self._long
        if both <= 0.0:
            return engines
        most = min(engines, round(engines * self._long / both) + (not short_late))
        seen = 0.0 if self._since is None else -math.expm1((self._since - now) / WINDOW_SECONDS) * WINDOW_SECONDS
        if seen > 0.0:  # what fades with that window is so much a second
            needed = math.ceil(self._long / seen / LONG_BUSY)
            most = min(most, max(needed, engines - round(self._short / seen / SHORT_BUSY)))
        return max(1, most)

    def _fade(self, now: float) -> None:
        if now > self._at:
            fade = math.exp((self._at - now) / WINDOW_SECONDS)
            self._short *= fade
            self._long *= fade
            self._at = now

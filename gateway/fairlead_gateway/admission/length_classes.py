"""A bound on the number of instances that compute long prompts at the same time.

A prompt is *long* if its prefill takes more than half of the tightest TTFT target of the last
minutes. No instance belongs to a class. Only the number of instances with long prompts is bounded,
so that the others are free for short ones.

The bound is the share of long prompts in the work of the last 30 seconds: neither class pays for
the overload of the other. One more instance is allowed until a queued short prompt is too
late: long prompts arrive in bursts, and idle instances are wasted. If the fleet has more instances
than both need, the rest goes to the short prompts. Then long prompts get as many instances as their
work keeps `LONG_UTILIZATION` busy, unless the short ones would keep the rest less than
`SHORT_UTILIZATION` busy.

Why: a short prompt behind a long one waits for all of it, and most queued prompts are short. Fixed
pools are worse: one misses its targets while the other idles. The measure is the highest load at
which both classes meet their targets, with 6,000 requests. Without classes: 0.8 to 0.9 of
capacity, in any order. With instances of their own (`policy`): 0.99 by deadline alone, 1.02 with
order and bound. A bound from the need of short prompts alone starves the long ones near saturation.
The p90 of the short class of LAPS' mix (load 0.7) is compared with a fleet without long prompts.
With the share alone it is 1.4 times as long. With the whole rule it is 1.1 times as long, and long
prompts meet their targets.

Source: LAPS (arXiv 2601.11589) for the two classes and the moving bound. Changed: seconds of the
uncached part instead of tokens, and a bound on what runs instead of a set of instances.
"""

import math
from typing import Final

LONG_SHARE: Final = 0.5
LONG_UTILIZATION: Final = 0.9
SHORT_UTILIZATION: Final = 0.4
"""Utilization of instances kept for one class. Targets of long prompts allow some waiting."""
WINDOW_SECONDS: Final = 30.0
_ROLL_SECONDS: Final = 60.0


class LengthClasses:
    """The recent work of one model by length class."""

    def __init__(self) -> None:
        self._short_seconds = self._long_seconds = 0.0
        self._updated_at = 0.0
        self._started_at: float | None = None
        self._tightest = self._former_tightest = math.inf
        self._loosest = self._former_loosest = 0.0
        self._rolled_at = 0.0

    def classify(self, objective_seconds: float, prefill_seconds: float, now: float) -> bool:
        """Counts an arrived request; returns True if it is long."""
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
        """The longest prefill of a short prompt, in seconds; infinite before the first request."""
        return LONG_SHARE * min(self._tightest, self._former_tightest)

    @property
    def objective_spread(self) -> float:
        """The loosest TTFT target of the last minutes over the tightest; 1 if there is only one."""
        tightest = min(self._tightest, self._former_tightest)
        return max(self._loosest, self._former_loosest) / tightest if 0.0 < tightest < math.inf else 1.0

    def max_long_engines(self, engines: int, now: float, *, short_late: bool = False) -> int:
        """Returns how many of `engines` instances may compute long prompts at once; at least one.

        short_late: a queued short prompt can no longer meet its TTFT target.
        """
        self._fade(now)
        both = self._short_seconds + self._long_seconds
        if both <= 0.0:
            return engines
        bound = min(engines, round(engines * self._long_seconds / both) + (not short_late))
        window_seconds = (
            0.0 if self._started_at is None else -math.expm1((self._started_at - now) / WINDOW_SECONDS) * WINDOW_SECONDS
        )
        if window_seconds > 0.0:  # the decayed sum divided by the window is a rate
            needed = math.ceil(self._long_seconds / window_seconds / LONG_UTILIZATION)
            bound = min(bound, max(needed, engines - round(self._short_seconds / window_seconds / SHORT_UTILIZATION)))
        return max(1, bound)

    def _fade(self, now: float) -> None:
        if now > self._updated_at:
            fade = math.exp((self._updated_at - now) / WINDOW_SECONDS)
            self._short_seconds *= fade
            self._long_seconds *= fade
            self._updated_at = now

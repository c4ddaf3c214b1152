"""Whether what an index says of an instance agrees with what its engine reports: a drift detector and its quarantine.

An answer's ``cached_tokens`` is the only word of an engine about the very cache that the index describes. Each answer is compared
with what had been *credited* by the index, and *expected* by all that was known (what was on its way, too), as shares of the prompt,
and two cumulative sums after E. S. Page (Continuous Inspection Schemes, 1954) are kept, one for each direction:

    over  = max(0, over  + credited - reported - ALLOWED)       ghosts: the index credits what is not there
    under = max(0, under + reported - expected - ALLOWED)       the index took away what is there

A sum beyond ``LIMIT`` is drift. Single mispredictions, and a bias within ``ALLOWED`` (blocks are up to an eighth of a prompt, links
are careful guesses), decay to nothing however long it goes on; a prompt that is wrong altogether adds 0.8, so six in a row are
enough. An engine that never reports says nothing, which is stated and never taken for zero. A few numbers an instance are all the
memory there is.

What was right a moment ago is no ghost: where an instance was heard to lose blocks of the prompt about when it was sent there, the
news were on their way, and the answer counts as ``late`` only. Prompts in a cycle that is just larger than the cache would end in
quarantine otherwise, and without the index they fare worse.

Drift puts the instance's index into quarantine: routing falls back to what gateways sent there. Afterwards the index counts again,
on trial: the sums begin at half of the limit. Whoever drifts again is out for twice as long, up to ``MOST_SECONDS``; whoever
agrees for as many answers as ``SOUND`` is as new.
"""

from typing import Final

ALLOWED_BIAS: Final = 0.2
DRIFT_LIMIT: Final = 4.0
SOUND_ANSWERS: Final = 50
FIRST_SECONDS: Final = 30.0
MAX_SECONDS: Final = 900.0


class DriftDetector:
    """One instance. Times are monotonic seconds; tokens are counts of whole answers."""

    __slots__ = (
        "_agreements",
        "_next_quarantine_seconds",
        "_reason",
        "answers",
        "late",
        "overcredit",
        "predicted_tokens",
        "quarantined_until",
        "quarantines",
        "reported_tokens",
        "undercredit",
        "unreported",
    )

    def __init__(self) -> None:
        self.overcredit = 0.0
        self.undercredit = 0.0
        self.answers = 0
        self.unreported = 0
        self.late = 0
        self.predicted_tokens = 0
        self.reported_tokens = 0
        self.quarantines = 0
        self.quarantined_until: float | None = None
        self._agreements = 0
        self._next_quarantine_seconds = FIRST_SECONDS
        self._reason = ""

    @property
    def is_quarantined(self) -> bool:
        """Whether the index does not count at present."""
        return self.quarantined_until is not None

    @property
    def ratio(self) -> float | None:
        """Tokens predicted for each one reported; None until both are known."""
        return self.predicted_tokens / self.reported_tokens if self.reported_tokens else None

    def reason(self) -> str:
        """Why the instance is in quarantine; empty when it is not."""
        return self._reason if self.is_quarantined else ""

    def observe(
        self,
        credited: float,
        expected: float,
        reported: int | None,
        prompt_tokens: int | None,
        now: float,
        *,
        covered: float | None = None,
        is_late: bool = False,
    ) -> bool:
        """One answer: tokens that the index credited, that were expected, that the engine reported (None: it did not). True when
        this was too much. ``covered``: the index knows nothing of what lies behind so many tokens; None: of all. ``late``: it
        lost blocks of the prompt while that was on its way."""
        if reported is None or not prompt_tokens:
            self.unreported += 1
            return False
        self.answers += 1
        self.predicted_tokens += int(credited)
        self.reported_tokens += reported
        if self.is_quarantined:
            return False
        ghosts = max(-1.0, min(1.0, (credited - reported) / prompt_tokens))
        if is_late and ghosts > 0.0:
            self.late += 1
            ghosts = 0.0
        known = reported if covered is None else min(reported, covered)
        misses = max(-1.0, min(1.0, (known - expected) / prompt_tokens))
        self.overcredit = max(0.0, self.overcredit + ghosts - ALLOWED_BIAS)
        self.undercredit = max(0.0, self.undercredit + misses - ALLOWED_BIAS)
        self._agreements = self._agreements + 1 if max(ghosts, misses) <= ALLOWED_BIAS else 0
        if self._agreements >= SOUND_ANSWERS:
            self._next_quarantine_seconds = FIRST_SECONDS
        if max(self.overcredit, self.undercredit) <= DRIFT_LIMIT:
            return False
        bias = (
            "credits what the engine does not find"
            if self.overcredit > self.undercredit
            else "misses what the engine finds"
        )
        self._reason = f"the index {bias}"
        self.quarantines += 1
        self.quarantined_until = now + self._next_quarantine_seconds
        self._next_quarantine_seconds = min(MAX_SECONDS, self._next_quarantine_seconds * 2.0)
        self._agreements = 0
        return True

    def end_quarantine(self, now: float) -> bool:
        """Whether the quarantine has just ended: the index counts again, on trial."""
        if self.quarantined_until is None or now < self.quarantined_until:
            return False
        self.quarantined_until = None
        self.overcredit = self.undercredit = DRIFT_LIMIT / 2
        return True

    def reset(self) -> None:
        """The engine began with an empty cache: what was wrong before says nothing of what comes."""
        self.overcredit = self.undercredit = 0.0

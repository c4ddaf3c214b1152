"""A drift detector: whether the index of an instance agrees with what its engine reports.

The `cached_tokens` of a response are the only report of an engine about the cache that the index
describes. Each response is compared with two predictions, as shares of the prompt: *credited*, by
the index, and *expected*, by all that was known. There are two cumulative sums, one for each error:

    over  = max(0, over  + credited - reported - ALLOWED_BIAS)      predicts what is not there
    under = max(0, under + reported - expected - ALLOWED_BIAS)      misses what is there

In the second sum, `reported` is at most the part of the prompt that the index knows. A sum beyond
`DRIFT_LIMIT` is drift. Single errors and a bias within `ALLOWED_BIAS` decay to nothing: blocks are
up to an eighth of a prompt, and links are careful estimates. A prompt that is wholly wrong adds
0.8, so six in a row are drift. An engine that never reports is unknown, never zero.

An instance may report the removal of a prompt's blocks about when the prompt is sent there. Then
the event came too late for routing, and the response counts as `late` only. Otherwise, prompts in a
cycle just larger than the cache would cause a quarantine, and they are slower without the index.

Drift quarantines the instance's index: routing falls back to what gateways sent there. Afterwards
the index counts again on trial, with sums at half of the limit. Repeated drift doubles the time, up
to `MAX_SECONDS`. After `SOUND_ANSWERS` responses that agree, it is `FIRST_SECONDS` again.

Source: cumulative sums after E. S. Page, Continuous Inspection Schemes, 1954.
"""

from typing import Final, NamedTuple

ALLOWED_BIAS: Final = 0.2
DRIFT_LIMIT: Final = 4.0
SOUND_ANSWERS: Final = 50
FIRST_SECONDS: Final = 30.0
MAX_SECONDS: Final = 900.0


class CacheOutcome(NamedTuple):
    """The cached tokens of one response.

    - credited: predicted by the index.
    - expected: predicted by the index and everything else that was known.
    - reported: reported by the engine; None if it did not report.
    - covered: number of first tokens that the index knows; None: all.
    """

    credited: float
    expected: float
    reported: int | None
    prompt_tokens: int
    covered: float | None = None


class DriftDetector:
    """The drift detector of one instance. Times are in monotonic seconds; tokens are summed up."""

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
        """True while routing ignores the instance's index."""
        return self.quarantined_until is not None

    @property
    def ratio(self) -> float | None:
        """Predicted cached tokens per reported one; None while no token was reported."""
        return self.predicted_tokens / self.reported_tokens if self.reported_tokens else None

    def reason(self) -> str:
        """Returns why the instance is quarantined; empty if it is not."""
        return self._reason if self.is_quarantined else ""

    def observe(self, outcome: CacheOutcome, now: float, *, is_late: bool = False) -> bool:
        """Compares one response; returns True if it starts a quarantine.

        is_late: the instance removed blocks of the prompt while the request was in flight.
        """
        credited, expected, reported, prompt_tokens, covered = outcome
        if reported is None or not prompt_tokens:
            self.unreported += 1
            return False
        self.answers += 1
        self.predicted_tokens += int(credited)
        self.reported_tokens += reported
        if self.is_quarantined:
            return False
        over = max(-1.0, min(1.0, (credited - reported) / prompt_tokens))
        if is_late and over > 0.0:
            self.late += 1
            over = 0.0
        known = reported if covered is None else min(reported, covered)
        under = max(-1.0, min(1.0, (known - expected) / prompt_tokens))
        self.overcredit = max(0.0, self.overcredit + over - ALLOWED_BIAS)
        self.undercredit = max(0.0, self.undercredit + under - ALLOWED_BIAS)
        self._agreements = self._agreements + 1 if max(over, under) <= ALLOWED_BIAS else 0
        if self._agreements >= SOUND_ANSWERS:
            self._next_quarantine_seconds = FIRST_SECONDS
        if max(self.overcredit, self.undercredit) <= DRIFT_LIMIT:
            return False
        bias = (
            "predicts what the engine does not find"
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
        """Ends the quarantine if its time is over, and returns True if so."""
        if self.quarantined_until is None or now < self.quarantined_until:
            return False
        self.quarantined_until = None
        self.overcredit = self.undercredit = DRIFT_LIMIT / 2
        return True

    def reset(self) -> None:
        """Resets the sums, for an engine that started with an empty cache."""
        self.overcredit = self.undercredit = 0.0

"""The index of one model: its translator, and the state and quality of each instance. Pure.

A drift detector: whether the index of an instance agrees with what its engine reports.

The `cached_tokens` of a response are the only report of an engine about the cache that the index
describes. Each response is compared with two predictions, as shares of the prompt: *credited*, by
the index, and *expected*, by all that was known. There are two cumulative sums, one for each error:

    over  = max(0, over  + credited - reported - ALLOWED_BIAS)      predicts what is not there
    under = max(0, under + reported - expected - ALLOWED_BIAS)      misses what is there

In the second sum, `reported` is at most the part of the prompt that the index knows. A sum beyond
`DRIFT_LIMIT` is drift. Single errors and a bias within `ALLOWED_BIAS` decay to nothing: blocks are
up to an eighth of a prompt, and links are estimates. A prompt that is wholly wrong adds
0.8, so six in a row are drift. An engine that never reports is unknown, never zero.

An instance may report the removal of a prompt's blocks about when the prompt is sent there. Then
the event came too late for routing, and the response counts as `late` only. Otherwise, prompts in a
cycle just larger than the cache would cause a quarantine, and they are slower without the index.

Drift quarantines the instance's index: routing falls back to what gateways sent there. Afterwards
the index counts again on trial, with sums at half of the limit. Repeated drift doubles the time, up
to `MAX_SECONDS`. After `SOUND_ANSWERS` responses that agree, it is `FIRST_SECONDS` again.

Source: cumulative sums after E. S. Page, Continuous Inspection Schemes, 1954.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from fairlead_gateway.kv_index.cache_correction import CacheCorrection
from fairlead_gateway.kv_index.messages import PromptFinished
from fairlead_gateway.kv_index.translator import PREFIX_MAP_INFLIGHT, PrefixTranslator
from fairlead_gateway.telemetry.status_types import BlockCounts, IndexState, InstanceIndexStatus
from fairlead_kvstore.blockstore.changes import Change, InstanceCleared
from fairlead_kvstore.blockstore.store import ModelBlocks

ALLOWED_BIAS: Final = 0.2
DRIFT_LIMIT: Final = 4.0
SOUND_ANSWERS: Final = 50
FIRST_SECONDS: Final = 30.0
MAX_SECONDS: Final = 900.0

INDEX_CENSUS_SECONDS: Final = 30.0
"""Limit: blocks that only one instance has are counted this often; more often where they are few.
"""
INDEX_RECENT_SECONDS: Final = 300.0
"""Limit: blocks of prompts sent within this time count as recently used."""
PREFIX_MAP_LATE_EVENT_SECONDS: Final = 0.25
"""Limit: longest delay of a KV event to the router; older mispredictions are real."""
PREFIX_MAP_JUDGE_SECONDS: Final = 0.5
"""Limit: from a response's end until its prediction is judged, so that its events have arrived."""

_RESET_SHARE = 0.5
_MIN_CENSUS_SECONDS = 0.5
_CENSUS_LOOKUPS = 262_144
"""Look-ups of one census, 50 to 150 ms. The next one goes on with other instances."""


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


@dataclass(slots=True, eq=False)
class DriftDetector:
    """The drift detector of one instance. Times are in monotonic seconds; tokens are summed up."""

    overcredit: float = 0.0
    undercredit: float = 0.0
    answers: int = 0
    unreported: int = 0
    late: int = 0
    predicted_tokens: int = 0
    reported_tokens: int = 0
    quarantines: int = 0
    quarantined_until: float | None = None
    reason: str = ""
    _agreements: int = 0
    _next_quarantine_seconds: float = FIRST_SECONDS

    @property
    def is_quarantined(self) -> bool:
        return self.quarantined_until is not None

    @property
    def ratio(self) -> float | None:
        """Predicted cached tokens per reported one; None while no token was reported."""
        return self.predicted_tokens / self.reported_tokens if self.reported_tokens else None

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
        is_over = self.overcredit > self.undercredit
        self.reason = (
            f"the index {'predicts what the engine does not find' if is_over else 'misses what the engine finds'}"
        )
        self.quarantines += 1
        self.quarantined_until = now + self._next_quarantine_seconds
        self._next_quarantine_seconds = min(MAX_SECONDS, self._next_quarantine_seconds * 2.0)
        self._agreements = 0
        return True

    def end_quarantine(self, now: float) -> bool:
        """Ends the quarantine if its time is over, and returns True if so."""
        if self.quarantined_until is None or now < self.quarantined_until:
            return False
        self.quarantined_until, self.reason = None, ""
        self.overcredit = self.undercredit = DRIFT_LIMIT / 2  # half the drift quarantines it again
        return True

    def reset(self) -> None:
        """Resets the sums, for an engine that started with an empty cache."""
        self.overcredit = self.undercredit = 0.0


_MIN_CENSUS_ROWS, _MAX_CENSUS_ROWS = 64, 4_096
"""The rows of an instance of which a census counts the blocks: all numbers within 2 to 12 %."""


class _Prediction(NamedTuple):
    """The predicted cached tokens of a finished response, checked once its KV events arrived."""

    due_at: float
    instance: str
    hashes: Sequence[int]
    dispatched_at: float
    outcome: CacheOutcome


class ModelIndex:
    """The index of one model. Times are monotonic seconds.

    - blocks: of its instances.
    - on_relearn: called when the links of the model were found wrong and were deleted.
    """

    def __init__(
        self,
        key: str,
        blocks: ModelBlocks,
        *,
        secret: bytes,
        on_relearn: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_relearn = on_relearn
        self.translator = PrefixTranslator(key, blocks, secret=secret)
        self._blocks = blocks
        self._census_due_at = float("-inf")
        self._census: dict[str, BlockCounts] = {}
        self._drifts: defaultdict[str, DriftDetector] = defaultdict(DriftDetector)
        self._predictions: deque[_Prediction] = deque(maxlen=PREFIX_MAP_INFLIGHT)

    def on_dispatch(
        self, instance: str, tail: int, hashes: Sequence[int], ends: Sequence[int], size: int, now: float
    ) -> bool:
        """Records a prompt that a worker sent. Returns True if a part has no link to token blocks.

        size: bytes of the prompt's text.
        """
        sent = self.translator.on_dispatch(instance, tail, hashes, now, reports_end=True)
        sent.dispatched_at = now
        if sent.open_requests == 1:
            sent.linked_share = ends[sent.linked_blocks - 1] / size if sent.linked_blocks and size else 0.0
        return sent.linked_blocks < len(hashes)

    def on_finish(self, finished: PromptFinished, now: float) -> None:
        """Records the end of a prompt that a worker of this gateway reported.

        If its instance is complete, the response is compared with the prediction later.
        """
        instance, indexed, tokens = finished.instance, finished.indexed_share, finished.prompt_tokens
        prompt = self.translator.on_finish(instance, finished.tail, now)
        known = self._blocks.completeness(instance)
        if prompt is None or indexed is None or tokens is None or known is None or not known[0]:
            return
        expected, linked = finished.matched_share * tokens, prompt.linked_share * tokens
        outcome = CacheOutcome(indexed * tokens, expected, finished.cached_tokens, tokens, linked)
        due_at = now + PREFIX_MAP_JUDGE_SECONDS
        self._predictions.append(_Prediction(due_at, instance, prompt.hashes, prompt.dispatched_at, outcome))

    def on_changes(self, changes: Sequence[Change]) -> None:
        """Called after the store has applied these changes: finds the corrections they cause."""
        self.translator.on_changes(changes)
        for change in changes:
            if isinstance(change, InstanceCleared) and change.instance in self._drifts:
                self._drifts[change.instance].reset()

    def corrections(self, now: float) -> list[CacheCorrection]:
        """Ends quarantines and checks predictions that are due; returns corrections for workers."""
        for instance, drift in self._drifts.items():
            if drift.end_quarantine(now):
                self.translator.trust(instance)
        while self._predictions and self._predictions[0].due_at <= now:
            self._check_prediction(self._predictions.popleft(), now)
        return self.translator.take_corrections(now)

    def _check_prediction(self, answer: _Prediction, now: float) -> None:
        """Compares a response with its prediction. Drift quarantines the instance; if most of them
        drift, the links are at fault, and all are deleted.
        """
        instance, outcome = answer.instance, answer.outcome
        late = outcome.reported is not None and outcome.credited > outcome.reported
        since = answer.dispatched_at - PREFIX_MAP_LATE_EVENT_SECONDS
        late = late and self.translator.has_removed_since(instance, answer.hashes, since)
        if not self._drifts[instance].observe(outcome, now, is_late=late):
            return
        self.translator.distrust(instance)
        if len(self._drifts) > 1 and len(self.quarantined()) > _RESET_SHARE * len(self._drifts):
            self.translator.clear()
            self._on_relearn()

    def retain(self, instances: Iterable[str]) -> None:
        """Forgets all other instances."""
        retained = set(instances)
        self.translator.retain(retained)
        for instance in self._drifts.keys() - retained:
            del self._drifts[instance]
        for instance in self._census.keys() - retained:
            del self._census[instance]
        predictions = (answer for answer in self._predictions if answer.instance in retained)
        self._predictions = deque(predictions, self._predictions.maxlen)

    def run_census(self, now: float) -> None:
        """Counts the blocks of the next instances in turn, if that is due."""
        if now < self._census_due_at:
            return
        instances, lookups = self._blocks.instances(), 0
        max_rows = min(_MAX_CENSUS_ROWS, max(_MIN_CENSUS_ROWS, _CENSUS_LOOKUPS // max(1, len(instances)) ** 2))
        turn = [name for name in instances if name not in self._census]
        for instance in turn + [name for name in self._census if name in instances]:
            blocks, *unique = self._blocks.count_unique(instance, now - INDEX_RECENT_SECONDS, max_rows)
            self._census.pop(instance, None)
            self._census[instance] = BlockCounts(blocks, *unique)
            lookups += min(blocks, max_rows) * len(instances)
            if lookups >= _CENSUS_LOOKUPS:
                break
        self._census_due_at = now + max(_MIN_CENSUS_SECONDS, INDEX_CENSUS_SECONDS * lookups / _CENSUS_LOOKUPS)

    def status(self, instance: str) -> InstanceIndexStatus:
        """Returns the state of an instance's index. Its block counts are those of the last
        census.
        """
        drift = self._drifts.get(instance) or DriftDetector()
        known = self._blocks.completeness(instance)
        if known is None:
            state, reason = IndexState.GUESSED, "its cache was never reported"
        elif drift.is_quarantined:
            state, reason = IndexState.QUARANTINED, drift.reason
        elif not known[0]:
            state, reason = IndexState.INCOMPLETE, known[1]
        else:
            state, reason = IndexState.INDEX, ""
        if state is IndexState.INDEX and drift.unreported and not drift.answers:
            reason = "its engine does not report cached tokens, so the quality of the index is unknown"
        return InstanceIndexStatus(
            state,
            reason,
            drift.predicted_tokens,
            drift.reported_tokens,
            drift.answers,
            drift.unreported,
            drift.late,
            drift.quarantines,
            drift.ratio,
            self._census.get(instance),
        )

    def quarantined(self) -> Mapping[str, str]:
        return {instance: drift.reason for instance, drift in self._drifts.items() if drift.is_quarantined}

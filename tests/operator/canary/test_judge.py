"""The judge of canaries, on traffic whose difference is known."""

from dataclasses import replace
from itertools import islice

import pytest

from fairlead_bench.canary import SimulatedRevision, simulate
from fairlead_operator.canary.judge import (
    Judgement,
    Measure,
    RevisionInterval,
    RevisionSums,
    Tolerances,
    Verdict,
    judge,
)


def judged(revision: SimulatedRevision, minutes: float = 10.0, seed: int = 7, *, is_complete: bool = True) -> Judgement:
    return judge(list(islice(simulate(seed, revision), int(4 * minutes))), is_complete=is_complete)


def test_without_requests_it_continues() -> None:
    assert judge([], is_complete=False).verdict is Verdict.CONTINUE
    late = judge([], is_complete=True)
    assert (late.verdict, late.reason) == (Verdict.CONTINUE, "only 0 requests so far, and 30 are needed")


def test_the_same_revision_is_promoted_once_it_was_observed() -> None:
    assert judged(SimulatedRevision(), is_complete=False).verdict is Verdict.CONTINUE
    judgement = judged(SimulatedRevision())
    assert (judgement.verdict, judgement.missed) == (Verdict.PROMOTE, None)
    assert judgement.reason == f"no difference found in {judgement.requests} requests"


@pytest.mark.parametrize(
    ("revision", "missed", "words"),
    [
        (SimulatedRevision(tpot=1.3), Measure.TPOT, "on average (+"),
        (SimulatedRevision(ttft=1.3), Measure.TTFT, "on average (+"),
        (SimulatedRevision(ttft=3.0), Measure.TTFT, "on average (+"),
        (SimulatedRevision(length=2.0), Measure.ANSWER_LENGTH, "tokens at the geometric mean"),
        (SimulatedRevision(length=0.4), Measure.ANSWER_LENGTH, "tokens at the geometric mean"),
        (SimulatedRevision(errors=0.05), Measure.ERRORS, "of the requests"),
    ],
)
def test_a_worse_revision_is_rolled_back_with_the_reason(
    revision: SimulatedRevision, missed: Measure, words: str
) -> None:
    judgement = judged(revision, is_complete=False)
    assert (judgement.verdict, judgement.missed) == (Verdict.ROLLBACK, missed)
    assert words in judgement.reason


def test_a_faster_revision_without_errors_is_promoted() -> None:
    assert judged(SimulatedRevision(ttft=0.5, tpot=0.5, errors=0.0)).verdict is Verdict.PROMOTE


def test_a_cold_cache_is_not_a_slow_engine() -> None:
    cold = [
        replace(
            interval,
            canary=replace(
                interval.canary,
                computed_tokens=interval.canary.computed_tokens + 200 * interval.canary.first_tokens,
                ttft_seconds=interval.canary.ttft_seconds + 0.02 * interval.canary.first_tokens,
            ),
        )
        for interval in islice(simulate(3, SimulatedRevision()), 40)
    ]
    assert judge(cold, is_complete=True).verdict is Verdict.PROMOTE


def test_errors_of_both_revisions_are_an_incident() -> None:
    incident = RevisionInterval(RevisionSums(attempts=100, errors=40), RevisionSums(attempts=10, errors=4))
    calm = RevisionInterval(RevisionSums(attempts=100), RevisionSums(attempts=10))
    assert judge([*[calm] * 10, *[incident] * 4], is_complete=True).verdict is Verdict.PROMOTE
    alone = RevisionInterval(RevisionSums(attempts=100), RevisionSums(attempts=10, errors=4))
    assert judge([*[calm] * 10, *[alone] * 2], is_complete=True).missed is Measure.ERRORS


def test_evidence_does_not_go_away() -> None:
    slow, healthy = (
        list(islice(simulate(5, revision), 40)) for revision in (SimulatedRevision(tpot=1.5), SimulatedRevision())
    )
    assert judge([*slow, *healthy, *healthy], is_complete=True).missed is Measure.TPOT


def test_a_difference_within_the_tolerance_is_none() -> None:
    assert judged(SimulatedRevision(length=1.1)).verdict is Verdict.PROMOTE
    wide = Tolerances(slower=1.5, ttft=3.0)
    intervals = list(islice(simulate(7, SimulatedRevision(ttft=1.3, tpot=1.3)), 40))
    assert judge(intervals, is_complete=True, rules=wide).verdict is Verdict.PROMOTE


def test_engines_that_stream_nothing_are_judged_by_the_rest() -> None:
    def without_streams(sums: RevisionSums) -> RevisionSums:
        return replace(sums, gaps=0, gap_seconds=0.0, first_tokens=0, ttft_seconds=0.0)

    intervals = [
        RevisionInterval(without_streams(interval.running), without_streams(interval.canary))
        for interval in islice(simulate(7, SimulatedRevision(length=3.0)), 40)
    ]
    judgement = judge(intervals, is_complete=True)
    assert judgement.missed is Measure.ANSWER_LENGTH
    assert {comparison.measure for comparison in judgement.comparisons} == {Measure.ANSWER_LENGTH, Measure.ERRORS}

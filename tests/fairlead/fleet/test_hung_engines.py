"""The verdict whether an engine hangs."""

import pytest

from fairlead.fleet.hung_engines import EjectionReport, HungVerdict, hung_verdict


def ejected(seconds: float, failed_probes: int = 0) -> EjectionReport:
    return EjectionReport(seconds, "3 timeouts", failed_probes, workers=1)


def verdict(**reports: EjectionReport | None) -> HungVerdict:
    return hung_verdict(reports, grace_seconds=60.0)


def test_engine_hangs_if_two_gateways_ejected_it_for_the_grace() -> None:
    vote = verdict(b=ejected(60.0), a=ejected(75.0))
    assert vote.is_hung
    assert vote.voters == ("a", "b")
    assert vote.reason == (
        "2 gateways get no answer (a: no answer for 1m15s since 3 timeouts; b: no answer for 1m since 3 timeouts)"
    )


def test_engine_hangs_if_one_gateway_ejected_it_and_two_probes_failed() -> None:
    vote = verdict(a=ejected(75.0, failed_probes=2))
    assert vote.is_hung
    assert vote.voters == ("a",)
    assert vote.reason == "2 probes failed (a: no answer for 1m15s since 3 timeouts)"


@pytest.mark.parametrize("failed_probes", [0, 1])
def test_one_gateway_without_two_failed_probes_does_not_suffice(failed_probes: int) -> None:
    vote = verdict(a=ejected(600.0, failed_probes))
    assert not vote.is_hung
    assert vote.voters == ("a",)
    assert vote.reason == f"one gateway gets no answer, and {failed_probes} of 2 probes failed"


def test_probes_that_failed_within_the_grace_do_not_suffice() -> None:
    vote = verdict(a=ejected(59.0, failed_probes=9))
    assert vote == HungVerdict(False, "no answer for 59s, and the grace is 1m")


def test_second_gateway_votes_only_after_the_grace() -> None:
    assert not verdict(a=ejected(61.0), b=ejected(59.0)).is_hung


def test_failed_probes_of_a_gateway_that_does_not_vote_do_not_count() -> None:
    assert not verdict(a=ejected(61.0), b=ejected(59.0, failed_probes=2)).is_hung


@pytest.mark.parametrize("failed_probes", [0, 5])
def test_gateway_that_gets_answers_vetoes_all_others(failed_probes: int) -> None:
    vote = verdict(a=ejected(600.0, failed_probes), b=ejected(600.0), c=None)
    assert vote == HungVerdict(False, "c: had an answer of it lately", ("a", "b"))


@pytest.mark.parametrize("reports", [{}, {"a": None}, {"a": None, "b": None}])
def test_no_engine_hangs_without_an_ejection(reports: dict[str, EjectionReport | None]) -> None:
    assert hung_verdict(reports, grace_seconds=60.0) == HungVerdict(False, "no gateway has ejected it")

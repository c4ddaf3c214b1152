"""Statistics of replay results, and the report with its documented form."""

from array import array
from dataclasses import asdict, replace

import pytest

from fairlead.fleet.model import SloTargets
from fairlead_cli.replay.client.open_loop_client import ReplayResult
from fairlead_cli.replay.report.report import (
    PolicyResult,
    ReplayReport,
    RunSummary,
    computed_tokens,
    describe_findings,
    headline,
    is_within_slo,
    live_simulated_gap,
    markdown,
    ratio,
    scale_times,
    summarize,
    summarize_values,
    table_rows,
)

OBJECTIVES = SloTargets(ttft_seconds=2.0, itl_seconds=0.1)


def make_result(
    number: int = 0,
    *,
    ttft: float | None = 1.0,
    gaps: tuple[float, ...] = (0.05, 0.05),
    cached: int | None = 0,
    instance: str = "a",
    error: str | None = None,
) -> ReplayResult:
    return ReplayResult(
        f"r{number}",
        due_seconds=0.0,
        prompt_tokens=1_000,
        instance=instance,
        ttft_seconds=ttft,
        gaps=array("d", gaps),
        finished_seconds=5.0,
        cached_tokens=cached,
        output_tokens=len(gaps) + 1,
        error=error,
    )


def run_summary(ttft: float, cached: int) -> RunSummary:
    results = [make_result(number, ttft=ttft, cached=cached, instance="ab"[number % 2]) for number in range(4)]
    return RunSummary.from_results(results, objectives=OBJECTIVES, instances=2)


def report(*, live: bool = True, invalid: tuple[str, ...] = ()) -> ReplayReport:
    policies = {
        "dual-hash": PolicyResult(run_summary(1.0, 400) if live else None, run_summary(1.1, 400)),
        "round-robin": PolicyResult(run_summary(4.0, 100) if live else None, run_summary(4.0, 100)),
    }
    return ReplayReport(
        trace="trace.jsonl",
        objectives=OBJECTIVES,
        speed=2.0,
        rate=6.5,
        requests=4,
        policies=policies,
        lags={"gateway": 0.004, "engine a": None},
        invalid_reasons=invalid,
        ideal_reuse=0.5,
        light_rate=1.0,
        light={"dual-hash": PolicyResult(None, run_summary(0.5, 400))},
    )


def test_quantiles_are_interpolated() -> None:
    distribution = summarize_values([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (distribution.mean, distribution.p50) == (3.0, 3.0)
    assert distribution.p90 == pytest.approx(4.6)


def test_missing_measurement_is_none_not_zero() -> None:
    assert asdict(summarize_values([])) == {"mean": None, "p50": None, "p90": None, "p99": None}


@pytest.mark.parametrize(
    ("result", "met"),
    [
        (make_result(), True),
        (make_result(ttft=2.1), False),
        (make_result(gaps=(0.05, 0.2)), False),
        (make_result(gaps=()), True),
        (make_result(ttft=None), False),
        (make_result(error="lost"), False),
    ],
)
def test_slo_needs_ttft_and_tpot_of_a_complete_answer(result: ReplayResult, met: bool) -> None:
    assert is_within_slo(result, OBJECTIVES) is met


def test_ttft_target_grows_with_the_prompt() -> None:
    assert is_within_slo(make_result(ttft=2.4), SloTargets(ttft_seconds=2.0, ttft_per_kilo_token_seconds=0.5))


def test_failed_requests_count() -> None:
    summary = summarize(
        [make_result(1, cached=500), make_result(2, ttft=None, gaps=(), cached=None, error="HTTP 503")],
        objectives=OBJECTIVES,
        instances=1,
    )
    assert (summary.requests, summary.errors, summary.within_objective) == (2, 1, 0.5)
    assert summary.cached_token_share == 0.5


def test_itl_quantiles_pool_gaps_of_all_requests() -> None:
    summary = summarize([make_result(gaps=(0.1,)), make_result(gaps=(0.2, 0.3))], objectives=OBJECTIVES, instances=1)
    assert summary.itl_seconds.mean == pytest.approx(0.2)


def test_load_spread_counts_idle_instances() -> None:
    summary = summarize([make_result(1), make_result(2)], objectives=OBJECTIVES, instances=2)
    assert computed_tokens([make_result(1), make_result(2)]) == {"a": 2_000}
    assert summary.load_cov == pytest.approx(1.0)


def test_times_are_scaled_to_simulated_seconds() -> None:
    (scaled,) = scale_times([make_result(ttft=0.5, gaps=(0.1,))], 2.0)
    assert (scaled.ttft_seconds, scaled.finished_seconds) == (1.0, 10.0)
    assert list(scaled.gaps) == [0.2]


def test_report_json_has_the_documented_keys() -> None:
    document = report().to_json()
    assert set(document) == {
        *("trace", "objective", "speed", "rate", "valid", "lag_p99_seconds", "policies", "light_load"),
        "ideal_cached_share",
    }
    assert set(document["policies"]["dual-hash"]) == {"live", "simulated"}
    assert set(document["light_load"]) == {"rate", "policies"}
    assert set(document["light_load"]["policies"]["dual-hash"]) == {"simulated"}
    summary = document["policies"]["dual-hash"]["live"]
    assert set(summary) == {
        *("requests", "errors", "ttft_seconds", "itl_seconds", "within_objective", "cached_token_share", "load_cov"),
    }
    assert set(summary["ttft_seconds"]) == set(summary["itl_seconds"]) == {"mean", "p50", "p90", "p99"}


def test_report_with_a_doubt_is_invalid() -> None:
    assert report().to_json()["valid"] is True
    doubtful = report(invalid=("gateway ran 30ms late",))
    assert doubtful.to_json()["valid"] is False
    assert "not valid" in markdown(doubtful)
    assert "gateway ran 30ms late" in markdown(doubtful)


def test_reported_lag_is_the_worst_known() -> None:
    assert report().to_json()["lag_p99_seconds"] == 0.004


def test_the_headline_compares_the_first_preset_with_the_best_of_the_others() -> None:
    assert headline(report()) == "dual-hash: p90 of first tokens 0.25 × that of round-robin"
    alone = {"gateway": report().policies["dual-hash"]}
    assert headline(replace(report(), policies=alone)) == "First tokens under gateway"
    assert headline(replace(report(), policies={})) == "Routing presets compared"


def test_findings_compare_dual_hash_with_others_and_live_with_simulated() -> None:
    findings = "\n".join(describe_findings(report()))
    assert "live: dual-hash reuses 4.00 × the cached tokens of round-robin, its p90 TTFT is 0.25 × as long" in findings
    assert "dual-hash: live mean TTFT is 9.1% below the simulated one" in findings


def test_rerun_on_live_choices_shows_the_timing_difference() -> None:
    policies = {"dual-hash": PolicyResult(run_summary(1.2, 400), run_summary(1.0, 400), run_summary(1.194, 400))}
    findings = describe_findings(ReplayReport("t", OBJECTIVES, 2.0, 6.5, 4, policies))
    assert findings == [
        "dual-hash: live mean TTFT is 20.0% above the simulated one; on the live run's own choices they are 0.5% apart"
    ]


def test_missing_side_is_left_out() -> None:
    only_simulated = report(live=False)
    assert [row[1] for row in table_rows(only_simulated.policies)] == ["simulated", "simulated"]
    assert live_simulated_gap(only_simulated.policies["dual-hash"]) is None
    assert ratio(None, run_summary(1.0, 1), "p90") is None
    assert "live" not in only_simulated.to_json()["policies"]["dual-hash"]

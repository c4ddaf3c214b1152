"""The simulation of a replay: the median of several runs, with the homes of the live gateway."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import SloTargets
from fairlead_cli.replay.client.open_loop_client import ReplayResult
from fairlead_cli.replay.fleet_simulation import FleetSimulation, jitter_arrivals, timing_doubts, transport_seconds
from fairlead_cli.replay.report.report import (
    count_finished_requests,
    foreign_request_doubts,
    lag_doubts,
    lag_p99,
    read_lags,
)
from fairlead_cli.replay.traffic import PromptBuilder, prefix_chains
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.workload.generators import conversation_traffic
from fairlead_sim.workload.traces import at_rate
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer

REQUESTS = at_rate(conversation_traffic(120, seed=4), 6.0)
OBJECTIVES = SloTargets(ttft_seconds=5.0)
IDS = [f"main-{index}/{9000 + index}/0" for index in range(4)]


def mean(results: Sequence[ReplayResult]) -> float:
    return sum(result.ttft_seconds or 0.0 for result in results) / len(results)


def simulation(name: str) -> FleetSimulation:
    return FleetSimulation(builtin_profile("910b4"), IDS, name, OBJECTIVES, b"one")


def test_simulation_returns_each_request_once_with_given_instance_ids() -> None:
    results = simulation("round-robin").run(REQUESTS)
    assert [result.id for result in results] == [request.id for request in REQUESTS]
    assert Counter(result.instance for result in results) == dict.fromkeys(IDS, 30)
    assert all(result.output_tokens == request.output_tokens for result, request in zip(results, REQUESTS, strict=True))


def test_median_run_has_the_median_mean_ttft() -> None:
    fleet = simulation("least-request")
    median_run = fleet.run_median(REQUESTS, run_count=5)
    means = [mean(fleet.run(jitter_arrivals(REQUESTS, 0.010, seed) if seed else REQUESTS)) for seed in range(5)]
    assert mean(median_run) == sorted(means)[2]


def test_jitter_delays_requests_by_at_most_its_bound() -> None:
    delayed = jitter_arrivals(REQUESTS, 0.010, 3)
    assert [request.id for request in delayed] == [request.id for request in REQUESTS]
    assert all(0 <= new.arrival - old.arrival <= 0.010 for new, old in zip(delayed, REQUESTS, strict=True))
    assert delayed == jitter_arrivals(REQUESTS, 0.010, 3)


def test_prefix_chains_depend_on_blocks_and_secret() -> None:
    builder = PromptBuilder(Tokenizer())
    chain = prefix_chains(builder, secret=b"one", model_key="default/demo")
    other = prefix_chains(builder, secret=b"two", model_key="default/demo")
    first, second = chain(REQUESTS[0]), chain(REQUESTS[1])
    shared = sum(a == b for a, b in zip(first.hashes, second.hashes, strict=False))
    assert 2_048 // 256 <= shared <= 2_560 // 256  # block 0 is common, a few bytes of JSON stand before it
    assert other(REQUESTS[0]).hashes[0] != first.hashes[0]


def test_given_choices_override_the_router() -> None:
    choices = {request.id: IDS[3] for request in REQUESTS[:10]}
    results = simulation("round-robin").run(REQUESTS, choices=choices)
    assert {result.instance for result in results[:10]} == {IDS[3]}
    assert {result.instance for result in results[10:]} == set(IDS)


def test_rerun_on_own_choices_is_equal_and_delay_is_transport_time() -> None:
    fleet = simulation("least-request")
    results = fleet.run(REQUESTS)
    rerun = fleet.run_on_choices(REQUESTS, results)
    assert [result.ttft_seconds for result in rerun] == [result.ttft_seconds for result in results]
    later = [replace(result, ttft_seconds=(result.ttft_seconds or 0.0) + 0.25) for result in results]
    assert transport_seconds(later, rerun) == pytest.approx(0.25)
    assert transport_seconds(rerun, later) == 0.0
    assert timing_doubts(results, rerun) == []
    slower = [replace(result, ttft_seconds=2.0 * (result.ttft_seconds or 0.0)) for result in results]
    assert "2.00 ×" in timing_doubts(slower, rerun)[0]


def test_delayed_feedback_changes_decisions_but_not_answers() -> None:
    fleet = simulation("least-request")
    prompt, late = fleet.run(REQUESTS), fleet.run(REQUESTS, feedback_delay_seconds=1_000.0)
    assert [result.instance for result in prompt] != [result.instance for result in late]
    assert all(result.ttft_seconds is not None for result in late)
    assert Counter(result.instance for result in late) == dict.fromkeys(IDS, 30)


@pytest.mark.parametrize("name", ["fairlead_gateway_loop_lag_seconds", "fairlead_sim_loop_lag_seconds"])
def test_lag_p99_is_the_worst_of_all_series(name: str) -> None:
    text = f'# TYPE {name} gauge\n{name}{{quantile="0.5"}} 0.9\n{name}{{quantile="0.99"}} 0.003\n'
    assert lag_p99(text + f'{name}{{engine="1",quantile="0.99"}} 1.2e-02\n') == 0.012


@pytest.mark.parametrize("text", ["", "other 1\n", 'fairlead_sim_loop_lag_seconds{quantile="0.99"} NaN\n'])
def test_missing_lag_is_none(text: str) -> None:
    assert lag_p99(text) is None


def test_unanswered_metrics_query_is_none() -> None:
    metrics = CannedResponse((b'fairlead_sim_loop_lag_seconds{quantile="0.99"} 0.002\n',))
    models = b'{"models": {"a/b": {"totals": {"requests": 3}}, "a/c": {"totals": {"requests": 4}}}, "more": 1}'
    with CannedServer({"/metrics": metrics, "/api/stats": CannedResponse((models,))}) as server:
        url = server.url
        lags, finished = read_lags([url]), count_finished_requests(url)
    assert lags == {url: 0.002}
    assert finished == 7
    assert count_finished_requests(url) is None
    assert read_lags([url], attempts=1) == {url: None}


def test_refused_statistics_are_unknown_not_zero() -> None:
    refused = CannedResponse((b'{"error": "unauthorized"}',), status=401)
    with CannedServer({"/api/stats": refused}) as server:
        assert count_finished_requests(server.url) is None


def test_lag_over_the_limit_is_a_doubt() -> None:
    assert lag_doubts({"gateway": 0.020, "replay's loop": 0.001}, 2.0) == []
    assert lag_doubts({"gateway": 0.0201}, 2.0) == ["gateway ran 20.1ms late (p99), more than 20ms"]
    assert lag_doubts({"gateway": 0.0201}, 1.0) == [], "slower simulated time makes it matter less"


def test_unknown_gateway_lag_is_a_doubt_unknown_engine_lag_is_not() -> None:
    assert len(lag_doubts({"gateway": None, "engine a/1/0": None}, 1.0)) == 1


def test_foreign_requests_are_a_doubt() -> None:
    assert foreign_request_doubts(10, 30, 20) == []
    assert foreign_request_doubts(10, 29, 20) == []  # one is not settled yet
    assert foreign_request_doubts(None, 30, 20) == []
    assert foreign_request_doubts(10, 33, 20) == ["the gateway answered 3 requests of other clients meanwhile"]

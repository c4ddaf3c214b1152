"""Validity of a replay: loop lag and foreign requests."""

import pytest

from fairlead_cli.replay.report.report import (
    count_finished_requests,
    foreign_request_doubts,
    lag_doubts,
    lag_p99,
    read_lags,
)
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer


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


def test_lag_over_the_limit_is_a_doubt() -> None:
    assert lag_doubts({"gateway": 0.020, "replay's loop": 0.001}) == []
    assert lag_doubts({"gateway": 0.0201}) == ["gateway ran 20.1ms late (p99), more than 20ms"]


def test_unknown_gateway_lag_is_a_doubt_unknown_engine_lag_is_not() -> None:
    assert len(lag_doubts({"gateway": None, "engine a/1/0": None})) == 1


def test_foreign_requests_are_a_doubt() -> None:
    assert foreign_request_doubts(10, 30, 20) == []
    assert foreign_request_doubts(10, 29, 20) == []  # one is not settled yet
    assert foreign_request_doubts(None, 30, 20) == []
    assert foreign_request_doubts(10, 33, 20) == ["the gateway answered 3 requests of other clients meanwhile"]

"""Metrics of gateways: their pages, and counters as differences."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import Unavailable
from fairlead.fleet.model import Fleet, Instance, Model
from fairlead.fleet.signals import EngineSignals
from fairlead.request_shapes import RequestShapeGrid
from fairlead.runtime.clock import ManualClock
from fairlead_autoscaler.collector import metrics_parser
from fairlead_autoscaler.collector.counter_deltas import (
    CounterTracker,
    advance,
    counter_increases,
    extrapolate,
    start_tracking,
)
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.telemetry.counters import ABANDONED
from fairlead_testing.gateway.running_gateway import make_outcome

KEY, HERE = "default/tiny", "main-0/9001/0"
INSTANCE = Instance(
    HERE,
    "default",
    "tiny",
    "main",
    "http://127.0.0.1:9001",
    signals=EngineSignals(
        running=3.0, waiting=1.0, kv_usage=0.25, prompt_tokens_total=900.0, generation_tokens_total=70.0
    ),
    received_at=1_008.5,
)
FLEET = Fleet(1, 1, {KEY: Model("default", "tiny"), "default/other": Model("default", "other")}, {KEY: (INSTANCE,)})


def _rendered() -> str:
    clock = ManualClock(1_000.0)
    telemetry = MetricsRecorder(clock)
    telemetry.record_received(KEY, 500)
    telemetry.record_received("default/other", 7)
    telemetry.record_first_token(KEY, HERE, 0.4, 0.5)
    telemetry.record_inter_token(KEY, HERE, 0.02)
    telemetry.record_finished(make_outcome("r", KEY, HERE, 200, None, 0.0, 1.0, 0.4, 0.02, 480, 0, 0, 40, True))
    telemetry.record(KEY, ABANDONED)
    telemetry.queued = {KEY: 2}
    telemetry.ejection_seconds = {HERE: 75.5, "elsewhere": 3.0}
    clock.advance(10.0)
    return telemetry.render(FLEET, {}, clock.now()).decode()


def test_what_a_gateway_renders_is_read_and_other_models_are_not() -> None:
    page = metrics_parser.parse_page(_rendered(), [KEY])
    assert page.uptime_seconds == 10.0
    assert page.counters[("arrivals", KEY)] == 1
    assert page.counters[("prompt_tokens", KEY)] == 500
    assert page.counters[("abandoned", KEY)] == 1
    assert page.counters[("finished", KEY, HERE)] == 1
    (shape,) = [key for key in page.counters if key[0] == "shapes"]
    assert RequestShapeGrid().bucket_index(float(shape[2]), float(shape[3])) == RequestShapeGrid().bucket_index(480, 40)
    assert page.counters[("first_tokens", KEY, HERE)] == 1
    assert page.counters[("ttft_seconds", KEY, HERE)] == 0.4
    assert page.counters[("within", KEY, HERE, "ttft")] == 1
    assert page.engine_counters == {("prompt_tokens", KEY, HERE): 900.0, ("generated_tokens", KEY, HERE): 70.0}
    assert page.gauges[("held", KEY)] == 2
    assert page.gauges[("ejected_seconds", KEY, HERE)] == 75.5
    assert page.gauges[("running", KEY, HERE)] == 3
    assert page.gauges[("kv_share", KEY, HERE)] == 0.25
    assert page.gauges[("age_seconds", KEY, HERE)] == 1.5
    assert {key[1] for table in (page.counters, page.engine_counters, page.gauges) for key in table} == {KEY}


def test_what_is_no_number_is_not_there() -> None:
    lines = [
        f'fairlead_gateway_{name}{{model="{KEY}"}} {value}'
        for name, value in (("held", "NaN"), ("received_total", "+Inf"))
    ]
    page = metrics_parser.parse_page("\n".join(["fairlead_gateway_uptime_seconds 1", *lines]), [KEY])
    assert (page.gauges, page.counters) == ({}, {})


@pytest.mark.property
@given(
    st.lists(
        st.builds(str.__add__, st.sampled_from(sorted(metrics_parser._METRIC_NAMES)), st.text(max_size=40)),
        max_size=6,
    )
)
def test_whatever_a_page_holds_it_is_read_or_refused(lines: list[str]) -> None:
    try:
        metrics_parser.parse_page("\n".join(["fairlead_gateway_uptime_seconds 1", *lines]), [KEY])
    except Unavailable:
        pass


def test_a_signal_that_an_engine_does_not_tell_is_not_there() -> None:
    silent = replace(INSTANCE, signals=EngineSignals(running=3.0))
    text = MetricsRecorder(ManualClock(0.0)).render(replace(FLEET, instances={KEY: (silent,)}), {}, 1_010.0).decode()
    page = metrics_parser.parse_page(text, [KEY])
    assert ("running", KEY, HERE) in page.gauges
    assert ("kv_share", KEY, HERE) not in page.gauges
    assert page.engine_counters == {}


@pytest.mark.parametrize(
    "text", ["", "<html>no</html>", "# TYPE up gauge\nup 1\n", "fairlead_gateway_uptime_seconds one\n", "{}"]
)
def test_what_is_no_gateways_page_is_refused(text: str) -> None:
    with pytest.raises(Unavailable):
        metrics_parser.parse_page(text, [KEY])


@pytest.mark.parametrize("uptime", ["NaN", "+Inf", "-5"])
def test_a_page_whose_uptime_cannot_be_is_no_gateways(uptime: str) -> None:
    text = f'fairlead_gateway_uptime_seconds {uptime}\nfairlead_gateway_received_total{{model="{KEY}"}} 9000000\n'
    with pytest.raises(Unavailable):
        metrics_parser.parse_page(text, [KEY])


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "1e308", "-1e308"])
def test_a_value_that_nothing_can_have_is_left_out(value: str) -> None:
    text = f'fairlead_gateway_uptime_seconds 5\nfairlead_gateway_held{{model="{KEY}"}} {value}\n'
    assert metrics_parser.parse_page(text, [KEY]).gauges == {}


def test_negative_values_of_one_gateway_hide_nothing_that_others_count() -> None:
    lines = ("uptime_seconds 5", f'held{{model="{KEY}"}} -1e15', f'received_total{{model="{KEY}"}} -7')
    page = metrics_parser.parse_page("".join(f"fairlead_gateway_{line}\n" for line in lines), [KEY])
    assert (page.gauges, page.counters) == ({}, {})


def test_gauge_that_no_gateway_can_have_is_left_out() -> None:
    lines = ("uptime_seconds 5", f'held{{model="{KEY}"}} 1e12', f'instances{{model="{KEY}",state="ready"}} 3')
    page = metrics_parser.parse_page("".join(f"fairlead_gateway_{line}\n" for line in lines), [KEY])
    assert page.gauges == {("instances", KEY, "ready"): 3.0}, "else the sum of all gateways would be impossible"


def test_line_with_thousands_of_labels_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = ",".join(f'l{number}="x"' for number in range(2_000))
    page = f'fairlead_gateway_uptime_seconds 5\nfairlead_gateway_held{{model="{KEY}",{labels}}} 1\n'
    monkeypatch.setattr(metrics_parser, "text_string_to_metric_families", lambda text: pytest.fail("it is parsed"))
    with pytest.raises(Unavailable, match="4096 characters"):
        metrics_parser.parse_page(page, [KEY])
    monkeypatch.setattr(metrics_parser, "_MAX_LINES", 3)
    with pytest.raises(Unavailable, match="over 3 lines"):
        metrics_parser.parse_page(f'fairlead_gateway_held{{model="{KEY}"}} 1\n' * 4, [KEY])


A, B = ("arrivals", "m"), ("held", "m")


def test_a_counter_that_went_back_was_reset_and_shows_what_happened_since() -> None:
    assert counter_increases({A: 100.0, B: 5.0}, {A: 7.0, B: 9.0}, starts_at_zero=True) == {A: 7.0, B: 4.0}


def test_a_new_counter_began_at_zero_only_where_its_source_shows_all_it_has() -> None:
    assert counter_increases({}, {A: 3.0}, starts_at_zero=True) == {A: 3.0}
    assert counter_increases({}, {A: 3.0}, starts_at_zero=False) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_an_impossible_value_is_left_out_and_is_no_new_base(value: float) -> None:
    tally, rises = advance(start_tracking({A: 10.0}, 0.0), {A: value}, 5.0, starts_at_zero=False)
    assert rises == {}
    tally, rises = advance(tally, {A: 14.0}, 10.0, starts_at_zero=False)
    assert rises == {}
    _, rises = advance(tally, {A: 15.0}, 15.0, starts_at_zero=False)
    assert rises == {A: 1.0}


def test_a_source_that_misses_looks_goes_on_as_it_did_and_no_burst_follows() -> None:
    tally, _ = advance(start_tracking({A: 0.0}, 0.0), {A: 50.0}, 5.0, starts_at_zero=True)
    tally, rises = extrapolate(tally, 10.0, 60.0)
    assert rises == {A: 50.0}
    tally, rises = extrapolate(tally, 12.0, 60.0)
    assert rises == {A: 20.0}
    tally, rises = advance(
        tally, {A: 200.0}, 15.0, starts_at_zero=True
    )  # 150 in the 10 s since it was read, of which 3 s are new
    assert rises == pytest.approx({A: 45.0})
    _, rises = advance(tally, {A: 210.0}, 20.0, starts_at_zero=True)
    assert rises == {A: 10.0}


def test_a_source_that_is_silent_too_long_or_read_once_has_no_delta() -> None:
    tally, _ = advance(start_tracking({A: 0.0}, 0.0), {A: 50.0}, 5.0, starts_at_zero=True)
    assert extrapolate(tally, 65.1, 60.0)[1] is None
    assert extrapolate(start_tracking({A: 1.0}, 0.0), 5.0, 60.0)[1] is None


@pytest.mark.property
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.integers(0, 10**9).map(float), max_size=20))
def test_a_rise_is_a_finite_number_and_never_negative(values: list[float]) -> None:
    tally: CounterTracker = start_tracking({}, 0.0)
    for second, value in enumerate(values, 1):
        tally, rises = advance(tally, {A: value}, float(second), starts_at_zero=True)
        assert all(0.0 <= rise < math.inf for rise in rises.values())

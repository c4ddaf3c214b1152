"""The metrics recorder: its counters, their Prometheus text and the one-minute window."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fairlead.decision import Decision, DecisionInput, DecisionText
from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, SloTargets
from fairlead.fleet.signals import EngineSignals
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.routing import InstanceLoad
from fairlead_gateway.supervisor.management.stats import model_stats
from fairlead_gateway.telemetry import MetricsRecorder, assess_attainment
from fairlead_gateway.telemetry import counters as at
from fairlead_gateway.telemetry.counters import (
    OVERHEAD_BOUNDS,
    SECONDS_BOUNDS,
    TOKEN_BOUNDS,
    overhead_bucket,
    quantile,
    seconds_bucket,
    token_bucket,
)
from fairlead_gateway.telemetry.metric_sources import EscapedLabels
from fairlead_testing.gateway.running_gateway import change_outcome, make_outcome

KEY = "default/tiny"
HERE = "main-0/9001/0"
ENDED = make_outcome("r1", KEY, HERE, 200, None, 0.0, 1.5, 0.4, 0.02, 1_000, 600, 500, 40, True)


@pytest.mark.parametrize(
    ("first", "counters", "length"),
    [
        ("RECEIVED", "COUNTERS", "MODEL_INTS"),
        ("TTFT_SUM", "SUMS", "SUMS"),
        ("I_ROUTED", "I_INTS", "I_INTS"),
        ("I_TTFT_SUM", "I_SUMS", "I_SUMS"),
    ],
)
def test_no_two_counters_share_a_position(first: str, counters: str, length: str) -> None:
    names = list(vars(at))
    names = [name for name in names[names.index(first) : names.index(length)] if not name.endswith("_BINS")]
    positions = [getattr(at, name) for name in names if name != counters]
    own = [position for position in positions if position < getattr(at, counters)]
    assert own == list(range(getattr(at, counters)))
    assert len(set(positions)) == len(positions)


def _instance(**changes: object) -> Instance:
    return replace(Instance(HERE, "default", "tiny", "main", "http://127.0.0.1:9001"), **changes)  # type: ignore[arg-type]  # a test's shorthand


def _fleet(instance: Instance | None = None) -> Fleet:
    return Fleet(3, 2, {KEY: Model("default", "tiny")}, {KEY: (instance or _instance(),)})


def _samples(
    telemetry: MetricsRecorder, fleet: Fleet | None = None, load: InstanceLoad | None = None
) -> dict[tuple[str, str], float]:
    """(name, labels sorted and joined) → value, through Prometheus' own parser."""
    text = telemetry.render(fleet or _fleet(), {HERE: load} if load else {}, 2_000.0).decode()
    return {
        (sample.name, ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def telemetry() -> MetricsRecorder:
    return MetricsRecorder(ManualClock(1_000.0))


def test_one_request_is_counted_once_everywhere(telemetry: MetricsRecorder) -> None:
    telemetry.record_received(KEY, 990.7)
    telemetry.record_routed(
        KEY, HERE, Decision(HERE, "affinity", DecisionText("home", inputs={f"{HERE}/home": DecisionInput(1.0)}))
    )
    telemetry.record_first_token(KEY, HERE, 0.4)
    telemetry.record_inter_token(KEY, HERE, 0.02)
    telemetry.record_finished(ENDED)
    seen = _samples(telemetry)
    model, instance = f"model={KEY}", f"instance={HERE},model={KEY}"
    assert seen["fairlead_gateway_received_total", model] == 1
    assert seen["fairlead_gateway_received_prompt_tokens_total", model] == 990
    assert seen["fairlead_gateway_requests_total", f"{model},status=200"] == 1
    assert seen["fairlead_gateway_home_decisions_total", model] == 1
    assert seen["fairlead_gateway_decisions_total", f"{model},rule=affinity"] == 1
    assert seen["fairlead_gateway_prompt_tokens_total", model] == 1_000
    assert seen["fairlead_gateway_computed_tokens_total", model] == 400
    assert seen["fairlead_gateway_cached_tokens_total", model] == 600
    assert seen["fairlead_gateway_predicted_cached_tokens_total", model] == 500
    assert seen["fairlead_gateway_cache_prediction_error_tokens_total", model] == 100
    assert seen["fairlead_gateway_within_objective_total", f"{model},objective=all"] == 1
    assert seen["fairlead_gateway_ttft_seconds_count", model] == 1
    assert seen["fairlead_gateway_ttft_seconds_sum", model] == 0.4
    assert seen["fairlead_gateway_itl_seconds_count", model] == 1
    assert seen["fairlead_gateway_instance_requests_total", instance] == 1
    assert seen["fairlead_gateway_instance_itl_seconds_sum", instance] == 0.02
    assert (
        seen[
            "gen_ai_server_time_to_first_token_seconds_count",
            f"gen_ai_provider_name=fairlead,gen_ai_request_model={KEY}",
        ]
        == 1
    )
    assert seen["inference_objective_request_total", f"model_name={KEY},target_model_name={KEY}"] == 1


def test_hand_offs_and_prefill_legs_are_counted_with_their_reasons(telemetry: MetricsRecorder) -> None:
    telemetry.record_handoff(KEY, "bypassed", "short")
    telemetry.record_handoff(KEY, "done", "none")
    telemetry.record_handoff(KEY, "done", "none")
    telemetry.record_prefill(KEY, HERE, 0.25, "ok")
    telemetry.record_prefill(KEY, HERE, 20.0, "timeout")
    seen = _samples(telemetry)
    model, instance = f"model={KEY}", f"instance={HERE},model={KEY}"
    assert seen["fairlead_gateway_handoffs_total", f"{model},outcome=bypassed,reason=short"] == 1
    assert seen["fairlead_gateway_handoffs_total", f"{model},outcome=done,reason=none"] == 2
    assert seen["fairlead_gateway_prefill_legs_total", f"{model},result=ok"] == 1
    assert seen["fairlead_gateway_prefill_legs_total", f"{model},result=timeout"] == 1
    assert seen["fairlead_gateway_prefill_seconds_sum", model] == 0.25
    assert seen["fairlead_gateway_prefill_seconds_count", model] == 1
    assert seen["fairlead_gateway_instance_requests_total", instance] == 2
    assert seen["fairlead_gateway_instance_errors_total", instance] == 1


def test_reasons_of_hand_offs_are_bounded() -> None:
    telemetry = MetricsRecorder(ManualClock(1_000.0), max_label_values=2)
    for number in range(5):
        telemetry.record_handoff(KEY, "failed", f"reason-{number}")
    assert telemetry.models[KEY].handoffs[("failed", "other")] == 3


def test_the_gateways_own_time_has_buckets_of_microseconds(telemetry: MetricsRecorder) -> None:
    for seconds in (0.000_015, 0.000_070, 9.0):
        telemetry.record_finished(change_outcome(ENDED, overhead_seconds=seconds))
    telemetry.record_finished(ENDED)
    seen = _samples(telemetry)
    name = "fairlead_gateway_overhead_seconds_bucket"
    assert [seen[name, f"le={bound},model={KEY}"] for bound in ("1e-05", "2e-05", "8e-05", "+Inf")] == [0, 1, 2, 3]


def test_the_last_minute_shows_the_gateways_own_time_in_microseconds(telemetry: MetricsRecorder) -> None:
    for _ in range(100):
        telemetry.record_finished(change_outcome(ENDED, overhead_seconds=0.000_070))
    shown = model_stats(KEY, telemetry, _fleet(), {}, 1_000.5).window.overhead_seconds
    assert shown.p50 is not None
    assert 0.000_04 <= shown.p50 <= 0.000_08
    assert shown.mean is not None
    assert abs(shown.mean - 0.000_070) < 1e-9


def test_failures_are_counted_by_the_status_of_the_client(telemetry: MetricsRecorder) -> None:
    telemetry.record_finished(change_outcome(ENDED, status=502, error="engines_broke_off"))
    telemetry.record_finished(change_outcome(ENDED, status=502, error="engines_broke_off", client_disconnected=True))
    assert _samples(telemetry)["fairlead_gateway_failed_total", f"error=engines_broke_off,model={KEY}"] == 1


@pytest.mark.parametrize(("status", "errors"), [(400, 0), (422, 0), (502, 1)])
def test_what_an_engine_refuses_is_no_error_of_the_model(telemetry: MetricsRecorder, status: int, errors: int) -> None:
    telemetry.record_finished(change_outcome(ENDED, status=status, error="engine-refused", instance_id="e-0/0/0"))
    series = telemetry.models[KEY]
    assert series.ints[at.ERRORS] == errors
    assert series.instances["e-0/0/0"].ints[at.I_ERRORS] == errors
    assert series.by_status == {status: 1}
    assert model_stats(KEY, telemetry, _fleet(), {}, 1_000.5).window.errors == errors


def test_keys_and_bodies_that_were_refused_have_counters_of_their_own(telemetry: MetricsRecorder) -> None:
    telemetry.record_rejected(None, 401, "invalid_api_key")
    telemetry.record_rejected(KEY, 422, "quarantined")
    telemetry.record_rejected(KEY, 404, "model_not_found")
    seen = _samples(telemetry)
    assert seen["fairlead_gateway_keys_refused_total", ""] == 1
    assert seen["fairlead_gateway_quarantine_refused_total", f"model={KEY}"] == 1


def test_what_belongs_to_no_model_is_absent_until_something_counts_it(telemetry: MetricsRecorder) -> None:
    assert ("fairlead_gateway_access_log_dropped_total", "") not in _samples(telemetry)
    telemetry.non_model_counters["access_log_dropped_total"] = 0
    assert _samples(telemetry)["fairlead_gateway_access_log_dropped_total", ""] == 0


def test_a_client_that_left_is_an_abort_and_no_error(telemetry: MetricsRecorder) -> None:
    telemetry.record_finished(change_outcome(ENDED, status=499, error="client-gone", client_disconnected=True))
    seen = _samples(telemetry)
    assert seen["fairlead_gateway_aborts_total", f"model={KEY}"] == 1
    assert seen["fairlead_gateway_errors_total", f"model={KEY}"] == 0
    assert seen["fairlead_gateway_instance_errors_total", f"instance={HERE},model={KEY}"] == 0


def test_a_stream_cut_after_its_first_byte_is_an_error_though_its_status_was_200(telemetry: MetricsRecorder) -> None:
    telemetry.record_finished(change_outcome(ENDED, error="cut"))
    assert _samples(telemetry)["fairlead_gateway_errors_total", f"model={KEY}"] == 1


def test_requests_for_no_known_model_are_counted_apart(telemetry: MetricsRecorder) -> None:
    telemetry.record_rejected(None, 404, "unknown-model")
    seen = _samples(telemetry)
    assert seen["fairlead_gateway_rejected_total", "kind=unknown-model,model=unknown,status=404"] == 1


def test_unknown_token_counts_are_not_counted_as_zero(telemetry: MetricsRecorder) -> None:
    telemetry.record_finished(change_outcome(ENDED, prompt_tokens=None, cached_tokens=None, output_tokens=None))
    seen = _samples(telemetry)
    assert seen["fairlead_gateway_request_prompt_tokens_count", f"model={KEY}"] == 0
    assert seen["fairlead_gateway_cache_reported_prompt_tokens_total", f"model={KEY}"] == 0


def test_a_request_without_an_objective_is_not_judged(telemetry: MetricsRecorder) -> None:
    telemetry.record_finished(change_outcome(ENDED, within_objective=None))
    telemetry.record_finished(change_outcome(ENDED, within_objective=False))
    seen = _samples(telemetry)
    assert seen["fairlead_gateway_judged_total", f"model={KEY},objective=all"] == 1
    assert seen["fairlead_gateway_within_objective_total", f"model={KEY},objective=all"] == 0


def test_models_beyond_the_limit_share_one_series() -> None:
    telemetry = MetricsRecorder(ManualClock(), max_models=2)
    for n in range(5):
        telemetry.record_received(f"default/m{n}")
    assert set(telemetry.models) == {"default/m0", "default/m1", "other"}
    assert telemetry.models["other"].ints[at.RECEIVED] == 3


def test_models_that_came_and_went_leave_room_for_new_ones() -> None:
    clock = ManualClock(1_000.0)
    telemetry = MetricsRecorder(clock, max_models=2, departed_seconds=300.0)
    for number in range(20):
        telemetry.record_received(f"default/m{number}")
        fleet = Fleet(models={f"default/m{number}": Model("default", f"m{number}")})
        telemetry.remove_departed(fleet, clock.now())
        assert f"default/m{number}" in telemetry.models
        clock.advance(301.0)
        telemetry.remove_departed(fleet, clock.now())
    assert set(telemetry.models) == {"default/m19"}
    assert telemetry._left_at == {}


def test_model_that_left_for_a_moment_keeps_its_counters() -> None:
    telemetry = MetricsRecorder(ManualClock(1_000.0), departed_seconds=300.0)
    telemetry.record_received(KEY)
    for fleet, now in ((Fleet(), 1_000.0), (_fleet(), 1_200.0), (Fleet(), 1_400.0), (Fleet(), 1_600.0)):
        telemetry.remove_departed(fleet, now)
    assert telemetry.models[KEY].ints[at.RECEIVED] == 1


def test_label_values_beyond_the_limit_are_counted_as_other() -> None:
    telemetry = MetricsRecorder(ManualClock(), max_label_values=2)
    for n in range(5):
        telemetry.record_rejected(KEY, 400, f"kind{n}")
        telemetry.record_retry(KEY, HERE, f"why{n}")
    seen = _samples(telemetry)
    assert seen["fairlead_gateway_rejected_total", f"kind=other,model={KEY},status=400"] == 3
    assert seen["fairlead_gateway_retries_total", f"model={KEY},reason=other"] == 3


def test_routes_are_counted_by_status_and_those_beyond_the_limit_together() -> None:
    telemetry = MetricsRecorder(ManualClock(), max_label_values=2)
    for route in ("chat/a", "chat/b", "chat/c", "chat/d", "chat/a"):
        telemetry.record_route(KEY, 200, route)
    seen = _samples(telemetry)
    name = "fairlead_gateway_route_requests_total"
    counts = {route: seen[name, f"model={KEY},route={route},status=200"] for route in ("chat/a", "chat/b", "other")}
    assert counts == {"chat/a": 2, "chat/b": 1, "other": 2}


def test_instances_beyond_the_limit_push_out_the_oldest() -> None:
    telemetry = MetricsRecorder(ManualClock(), max_instances=2)
    for n in range(3):
        telemetry.record_first_token(KEY, f"pod-{n}/8000/0", 0.1)
    assert list(telemetry.models[KEY].instances) == ["pod-1/8000/0", "pod-2/8000/0"]


def test_an_instance_that_left_keeps_its_counters_for_a_while_and_then_goes() -> None:
    telemetry = MetricsRecorder(ManualClock(1_000.0), departed_seconds=300.0)
    telemetry.record_first_token(KEY, HERE, 0.1)
    telemetry.render(_fleet(), {}, 1_000.0)
    telemetry.render(Fleet(), {}, 1_299.0)
    assert HERE in telemetry.models[KEY].instances
    telemetry.render(Fleet(), {}, 1_301.0)
    assert HERE not in telemetry.models[KEY].instances


def test_the_window_holds_the_last_minute_and_no_more() -> None:
    clock = ManualClock(1_000.0)
    telemetry = MetricsRecorder(clock)
    for _ in range(120):
        telemetry.record_received(KEY)
        telemetry.record_inter_token(KEY, HERE, 0.02)
        clock.advance(1.0)
    series = telemetry.models[KEY]
    assert series.ints[at.RECEIVED] == 120
    ints, sums = series.last_minute(clock.now())
    assert ints[at.RECEIVED] == 60
    assert math.isclose(sums[at.ITL_SUM], 60 * 0.02)
    clock.advance(61.0)
    assert not any(series.last_minute(clock.now())[0])


def test_a_request_counts_at_the_time_that_its_caller_has_read(telemetry: MetricsRecorder) -> None:
    telemetry.record_received(KEY, 0.0, 1_001.9)
    telemetry.record_received(KEY, 0.0, 1_000.9)  # it came before, and is counted after another event
    series = telemetry.models[KEY]
    assert series.current_second == 1_001
    assert series.last_minute(1_061.0)[0][at.RECEIVED] == 2
    assert series.last_minute(1_062.5)[0][at.RECEIVED] == 0


def test_gaps_of_a_long_stream_count_in_the_second_in_which_they_happen() -> None:
    clock = ManualClock(1_000.0)
    telemetry = MetricsRecorder(clock)
    telemetry.record_received(KEY)
    for _ in range(100):
        telemetry.record_inter_token(KEY, HERE, 0.5)
        clock.advance(1.0)
    ints, _ = telemetry.models[KEY].last_minute(clock.now())
    assert sum(ints[at.ITL : at.ITL + at.SECONDS_BINS]) == 60


def test_engine_signals_are_relayed_with_their_age_and_missing_ones_have_no_line() -> None:
    signals = EngineSignals(running=3.0, kv_usage=0.25)
    seen = _samples(MetricsRecorder(ManualClock()), _fleet(_instance(signals=signals, received_at=1_998.5)))
    labels = f"instance={HERE},model={KEY},pool=main"
    assert seen["fairlead_gateway_engine_running", labels] == 3
    assert seen["fairlead_gateway_engine_signals_age_seconds", labels] == 1.5
    assert ("fairlead_gateway_engine_waiting", labels) not in seen
    assert seen["inference_pool_average_kv_cache_utilization", "name=tiny-main,namespace=default"] == 0.25
    assert ("inference_pool_average_queue_size", "name=tiny-main,namespace=default") not in seen


def test_loads_are_shown_per_instance_and_summed_per_model() -> None:
    seen = _samples(MetricsRecorder(ManualClock()), load=InstanceLoad(5, 2, 0.75, 1_200.0))
    assert seen["fairlead_gateway_in_flight", f"model={KEY}"] == 5
    assert seen["fairlead_gateway_queue", f"model={KEY}"] == 2
    assert seen["fairlead_gateway_instance_backlog_seconds", f"instance={HERE},model={KEY}"] == 0.75


def test_instances_are_counted_by_state() -> None:
    seen = _samples(MetricsRecorder(ManualClock()), _fleet(_instance(state=InstanceState.DRAINING)))
    assert seen["fairlead_gateway_instances", f"model={KEY},state=Draining"] == 1
    assert seen["fairlead_gateway_instances", f"model={KEY},state=Ready"] == 0
    assert seen["inference_pool_ready_pods", "name=tiny-main,namespace=default"] == 0


def test_hostile_names_stay_inside_their_label() -> None:
    assert EscapedLabels()['a"b\\c\nd'] == 'a\\"b\\\\c\\nd'
    telemetry = MetricsRecorder(ManualClock())
    telemetry.record_received('ns/x"} 1\nfake_metric 2')
    seen = _samples(telemetry)
    assert not any(name == "fake_metric" for name, _ in seen)
    assert seen["fairlead_gateway_received_total", 'model=ns/x"} 1\nfake_metric 2'] == 1


@given(st.lists(st.floats(0.0005, 900.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_read_from_the_histogram_is_close_to_the_true_one(values: list[float], share: float) -> None:
    telemetry = MetricsRecorder(ManualClock())
    for value in values:
        telemetry.record_first_token(KEY, HERE, value)
    counts = telemetry.models[KEY].ints[at.TTFT : at.TTFT + at.SECONDS_BINS]
    true = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    read = quantile(counts, share)
    assert read is not None
    assert true / 1.2 <= read <= true * 1.2


@given(st.lists(st.floats(0.0, 5_000.0), max_size=100))
def test_exported_buckets_are_cumulative_and_complete(values: list[float]) -> None:
    telemetry = MetricsRecorder(ManualClock())
    telemetry.record_received(KEY)
    for value in values:
        telemetry.record_inter_token(KEY, HERE, value)
    seen = _samples(telemetry)
    buckets = [
        (float(labels.partition("le=")[2].partition(",")[0]), value)
        for (name, labels), value in seen.items()
        if name == "fairlead_gateway_itl_seconds_bucket"
    ]
    for bound, value in buckets:
        exact = next((fine for fine in SECONDS_BOUNDS if math.isclose(fine, bound, rel_tol=1e-4)), math.inf)
        assert value == sum(item <= exact for item in values)
    assert seen["fairlead_gateway_itl_seconds_count", f"model={KEY}"] == len(values)


def test_attainment_needs_every_part_there_is() -> None:
    goals = SloTargets(0.95, 1.0, 0.1, 0.05)

    def judge(ttft: float | None, itl: float | None, failed: bool = False) -> bool | None:
        return assess_attainment(
            goals, prompt_tokens=2_000, ttft_seconds=ttft, itl_mean_seconds=itl, failed=failed
        ).both

    assert judge(1.2, 0.05) is True
    assert judge(1.21, 0.05) is False
    assert judge(1.0, 0.06) is False
    assert judge(1.0, None) is True
    assert judge(None, None, failed=True) is False


def test_attainment_without_objectives_is_not_known() -> None:
    judged = assess_attainment(SloTargets(), prompt_tokens=None, ttft_seconds=0.1, itl_mean_seconds=0.1, failed=True)
    assert (judged.ttft, judged.itl, judged.both) == (None, None, None)


BUCKETS = [(SECONDS_BOUNDS, seconds_bucket), (TOKEN_BOUNDS, token_bucket), (OVERHEAD_BOUNDS, overhead_bucket)]


@given(st.floats(-1.0, 100_000_000.0), st.sampled_from(BUCKETS))
def test_a_value_falls_into_the_bucket_that_the_library_would_find(
    value: float, buckets: tuple[tuple[float, ...], Callable[[float], int]]
) -> None:
    bounds, bucket_of = buckets
    assert bucket_of(value) == bisect_left(bounds, value)
    position = int(value) % len(bounds)
    for near in (bounds[position], math.nextafter(bounds[position], 0.0), math.nextafter(bounds[position], math.inf)):
        assert bucket_of(near) == bisect_left(bounds, near)


def test_pending_additions_are_visible_and_counted_once(telemetry: MetricsRecorder) -> None:
    telemetry.record_finished(ENDED)
    series = telemetry.models[KEY]
    assert series.by_status == {200: 1}
    for _ in range(2):
        assert series.ints[at.FINISHED] == 1
        assert math.isclose(series.sums[at.DURATION_SUM], 1.5)
    telemetry.record_finished(ENDED)
    assert math.isclose(series.sums[at.DURATION_SUM], 3.0)
    assert (series.ints[at.FINISHED], series.by_status) == (2, {200: 2})
    assert series.instances[HERE].ints[at.I_FINISHED] == 2


def test_of_an_instance_first_tokens_are_judged_when_they_come_and_paces_at_the_end(telemetry: MetricsRecorder) -> None:
    for seconds, limit in ((0.4, 0.5), (0.6, 0.5), (9.0, None)):
        telemetry.record_first_token(KEY, HERE, seconds, limit)
    telemetry.record_finished(change_outcome(ENDED, within_itl=False))
    telemetry.record_finished(change_outcome(ENDED, within_itl=None))
    seen = _samples(telemetry)
    where = f"instance={HERE},model={KEY}"
    counts = {
        (kind, objective): seen[f"fairlead_gateway_instance_{kind}_total", f"{where},objective={objective}"]
        for kind in ("within_objective", "judged")
        for objective in ("ttft", "itl")
    }
    assert counts == {
        ("within_objective", "ttft"): 1,
        ("judged", "ttft"): 2,
        ("within_objective", "itl"): 0,
        ("judged", "itl"): 1,
    }


def test_only_a_disconnect_before_the_first_token_is_abandonment(telemetry: MetricsRecorder) -> None:
    telemetry.record(KEY, at.ABANDONED)
    telemetry.record_finished(change_outcome(ENDED, client_disconnected=True, ttft_seconds=None))
    telemetry.record_finished(change_outcome(ENDED, client_disconnected=True, ttft_seconds=0.4))
    seen = _samples(telemetry)
    assert seen["fairlead_gateway_abandoned_total", f"model={KEY}"] == 2
    assert seen["fairlead_gateway_aborts_total", f"model={KEY}"] == 2


def test_complete_answers_are_counted_by_at_most_a_hundred_shapes(telemetry: MetricsRecorder) -> None:
    for prompt in range(0, 200_000, 999):
        for output in (1, 2, 30, 500, 9_000, 70_000):
            telemetry.record_finished(change_outcome(ENDED, prompt_tokens=prompt, output_tokens=output))
    series = telemetry.models[KEY]
    assert len(series.by_shape) <= at.REQUEST_SHAPES.size == 100
    assert sum(series.by_shape.values()) == series.ints[at.FINISHED]
    name = "fairlead_gateway_request_shapes_total"
    assert (
        sum(value for (family, _), value in _samples(telemetry).items() if family == name) == series.ints[at.FINISHED]
    )
    before = dict(series.by_shape)
    for cut in ({"client_disconnected": True}, {"error": "broken"}, {"status": 503}, {"output_tokens": None}):
        telemetry.record_finished(change_outcome(ENDED, **cut))  # type: ignore[arg-type]  # a test's shorthand
    assert series.by_shape == before


def test_queued_requests_are_shown_and_an_empty_queue_is_zero(telemetry: MetricsRecorder) -> None:
    assert _samples(telemetry)["fairlead_gateway_held", f"model={KEY}"] == 0
    telemetry.queued = {KEY: 3}
    assert _samples(telemetry)["fairlead_gateway_held", f"model={KEY}"] == 3

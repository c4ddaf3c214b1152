"""Snapshots of several processes add up to what one process would have counted."""

import random

import pytest

from fairlead.fleet.model import Fleet
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.telemetry.counters import ModelCounters
from fairlead_gateway.telemetry.snapshot import TABLES, ModelSnapshot, restore_counters, snapshot_of, sum_snapshots
from fairlead_testing.gateway.running_gateway import make_outcome

KEYS = ("chat/a", "chat/b")


def busy(telemetry: MetricsRecorder, draw: random.Random) -> None:
    """One request. Times are eighths of a second, so that their sums are exact."""
    key, instance = draw.choice(KEYS), f"i-{draw.randrange(3)}"
    if draw.random() < 0.2:
        telemetry.record_rejected(
            draw.choice((*KEYS, None)), draw.choice((404, 503)), draw.choice(("unknown-model", "full"))
        )
        return
    telemetry.record_received(key)
    telemetry.record_retry(key, instance, draw.choice(("cut", "refused")))
    telemetry.record_ejection(key, instance, "refused")
    telemetry.record_resumption(key, "whole")
    telemetry.record_not_continued(key, "grammar")
    telemetry.record_handoff(key, "failed", draw.choice(("expired", "none")))
    telemetry.record_prefill(key, instance, draw.randrange(8) / 8, draw.choice(("ok", "timeout")))
    telemetry.record_first_token(key, instance, draw.randrange(64) / 8)
    telemetry.record_inter_token(key, instance, draw.randrange(8) / 8)
    telemetry.record_finished(
        make_outcome(
            "r",
            key,
            instance,
            draw.choice((200, 502)),
            draw.choice((None, "cut")),
            0.0,
            draw.randrange(64) / 8,
            itl_mean_seconds=0.125,
            prompt_tokens=draw.randrange(9_000),
            cached_tokens=draw.randrange(900),
            predicted_cached_tokens=5,
            output_tokens=draw.randrange(90),
            within_objective=draw.random() < 0.5,
            overhead_seconds=draw.randrange(8) / 8,
        )
    )


def parts_of(telemetry: MetricsRecorder, now: float | None) -> dict[str, ModelSnapshot]:
    return {key: snapshot_of(key, series, now) for key, series in telemetry.models.items()}


@pytest.mark.parametrize("seed", range(5))
def test_three_processes_count_what_one_would_have_counted(seed: int) -> None:
    draw, clock = random.Random(seed), ManualClock(1_000.0)
    single, several = MetricsRecorder(clock), [MetricsRecorder(clock) for _ in range(3)]
    for _ in range(150):
        counted_by = several[draw.randrange(3)]
        state = draw.getstate()
        busy(counted_by, draw)
        draw.setstate(state)
        busy(single, draw)
        clock.advance(draw.choice((0.0, 0.3, 4.0)))
    now = clock.now()
    summed = sum_snapshots([parts_of(telemetry, now) for telemetry in several])
    assert summed.keys() == single.models.keys()
    for key, part in summed.items():
        series, wanted = restore_counters(part, now), single.models[key]
        assert (series.ints, series.sums) == (wanted.ints, wanted.sums)
        assert series.last_minute(now + 0.4) == wanted.last_minute(now)
        for name in TABLES:
            assert getattr(series, name) == getattr(wanted, name)
        assert series.instances.keys() == wanted.instances.keys()
        for item, instance in series.instances.items():
            assert (instance.ints, instance.sums) == (wanted.instances[item].ints, wanted.instances[item].sums)
            assert instance.last_minute(now) == wanted.instances[item].last_minute(now)


def test_a_sum_of_snapshots_renders_like_one_process() -> None:
    clock = ManualClock(1_000.0)
    recorder, other = MetricsRecorder(clock), MetricsRecorder(clock)
    for telemetry in (recorder, other):
        busy(telemetry, random.Random(7))
    shown = MetricsRecorder(clock)
    both = sum_snapshots([parts_of(recorder, clock.now()), parts_of(other, None)])
    shown.models.update({key: restore_counters(part, clock.now()) for key, part in both.items()})
    assert 'fairlead_gateway_received_total{model="chat/' in shown.render(Fleet(), {}, clock.now()).decode()
    for key, series in shown.models.items():
        assert series.last_minute(clock.now()) == recorder.models[key].last_minute(clock.now())
        assert series.ints == [2 * count for count in recorder.models[key].ints]


def test_every_table_of_a_model_is_added_up() -> None:
    """A new one must be named there."""
    tables = {name for name in dir(ModelCounters()) if isinstance(getattr(ModelCounters(), name, None), dict)}
    assert {name for name in tables if name[0] != "_"} - {"instances"} == set(TABLES)

"""The history of decisions: what is recorded, and its replay."""

import errno
import io
import resource
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.engine_profile import builtin_profile
from fairlead.errors import BadInput
from fairlead_autoscaler.core import (
    GatewayTraffic,
    MixRequest,
    MixResult,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ScalingCore,
    ShapeCount,
)
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.history.recorder import (
    RecordBuffer,
    RecordFiles,
    TickRecord,
    decode_record,
    encode_record,
    read_records,
    record_files,
)
from fairlead_autoscaler.history.replay import SettingChanges, parse_changes, replay
from fairlead_autoscaler.scaling_policy import EnforcedPlan
from fairlead_sim.autoscaling.reference_pools import large_profile, small_profile

MODEL = ModelSpec("default/tiny", 2.0, 0.05, (PoolSpec("main", maximum=4),), ttft_bounds=(2.0,), itl_bounds=(0.05,))


def looks(count: int, model: ModelSpec = MODEL) -> list[TickRecord]:
    core, records = ScalingCore(model), []
    for tick in range(count):
        replica = ReplicaMetrics(
            "a", ReplicaState.READY, 50.0 + 5 * tick, 3.0, 2.0, 0.0, 0.1, 900.0, 500.0, 9.5, 12.0, 12.0
        )
        pool = PoolObservation(1, 1, replicas=(replica,))
        before = core.state
        seen = Observation(5.0 * tick, GatewayTraffic(12.0, 9_000.0), {"main": pool}, 1_000.0 + 5.0 * tick)
        ruling = {"main": EnforcedPlan(1, 1, "enough", "as it is", 1)}
        records.append(TickRecord(seen.wall or 0.0, model, seen, core.step(seen), ruling, before=before))
    return records


def test_a_line_reads_back_to_exactly_the_look() -> None:
    for look in looks(40):
        assert decode_record(encode_record(look)) == look


def test_settings_keep_their_types_in_a_recording() -> None:
    (record,) = looks(1)
    recorded = decode_record(encode_record(replace(record, settings=ScalingSettings().flat())))
    assert [repr(value) for value in recorded.scaling_settings.flat().values()] == [
        repr(value) for value in ScalingSettings().flat().values()
    ]


def test_a_line_that_is_none_is_refused() -> None:
    for line in (b"", b"{}", b"[1]", b'{"wall": "x"}', b"[" * 100_000):
        with pytest.raises(BadInput):
            decode_record(line)


def test_a_ring_knows_the_last_look_of_a_model_at_a_moment() -> None:
    ring = RecordBuffer()
    other = replace(MODEL, name="default/other")
    for look in [*looks(3), *looks(1, other)]:
        ring.add(look, encode_record(look))
    assert decode_record(ring.last_at("default/tiny") or b"").wall == 1_010.0
    assert decode_record(ring.last_at("default/tiny", 1_009.9) or b"").wall == 1_005.0
    assert ring.last_at("default/tiny", 999.0) is None
    assert ring.last_at("default/nobody") is None
    assert len(list(ring.lines("default/tiny", 1_005.0))) == 2
    assert len(list(ring.lines())) == 4


def test_a_ring_forgets_the_oldest_when_it_is_full() -> None:
    records = looks(10)
    size = max(len(encode_record(look)) for look in records)
    ring = RecordBuffer(3 * size)
    for look in records:
        ring.add(look, encode_record(look))
    kept = [decode_record(line).wall for line in ring.lines()]
    assert kept[-1] == records[-1].wall
    assert 3 <= len(kept) < 10


def test_files_follow_one_another_and_the_oldest_go(tmp_path: Path) -> None:
    records = looks(9)
    size = max(len(encode_record(look)) for look in records) + 1
    files = RecordFiles(tmp_path / "kept", max_bytes=2 * size, max_files=2)
    for look in records:
        files.add(encode_record(look))
    assert len(record_files(tmp_path / "kept")) == 2
    assert [look.wall for look in read_records(tmp_path / "kept")] == [look.wall for look in records][-3:]


def test_another_process_goes_on_with_the_next_file(tmp_path: Path) -> None:
    for look in looks(2):
        RecordFiles(tmp_path).add(encode_record(look))
    assert [number for number, _ in record_files(tmp_path)] == [1, 2]
    assert [look.wall for look in read_records(tmp_path)] == [1_000.0, 1_005.0]


class UntruncatableFile(io.FileIO):
    def truncate(self, size: int | None = None, /) -> int:
        raise OSError(errno.EIO, "no truncation")


@pytest.mark.parametrize("truncates", [True, False])
def test_record_that_does_not_fit_on_the_disk_leaves_no_partial_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truncates: bool
) -> None:
    first, second, third = (encode_record(look) for look in looks(3))
    files = RecordFiles(tmp_path)
    files.add(first)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(first) + len(second) // 2, before[1]))
    with monkeypatch.context() as patch:
        if not truncates:
            patch.setattr(Path, "open", lambda path, mode, buffering: UntruncatableFile(path, mode))
        try:
            files.add(second)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be written" in (files.problem or "")
    files.add(third)
    assert files.problem is None
    assert [look.wall for look in read_records(tmp_path)] == [1_000.0, 1_010.0]
    assert len(record_files(tmp_path)) == (1 if truncates else 2)


def test_a_last_line_that_was_cut_off_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scaling-000001.jsonl"
    first, second = (encode_record(look) for look in looks(2))
    path.write_bytes(first + b"\n" + second[:-9])
    assert [look.wall for look in read_records(path)] == [1_000.0]
    path.write_bytes(first + b"\n" + second[:-9] + b"\n" + first + b"\n")
    with pytest.raises(BadInput, match=r"scaling-000001\.jsonl:2: "):
        list(read_records(path))


def test_a_disk_that_does_not_take_it_costs_the_recording_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    files = RecordFiles(tmp_path / "file" / "kept")
    files.add(b"{}")
    assert files.problem == "the recording cannot be written: Not a directory"


def test_a_folder_without_a_recording_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no recording"):
        list(read_records(tmp_path))


@pytest.mark.property
@given(st.binary(max_size=200))
def test_no_line_of_bytes_does_anything_but_be_refused(line: bytes) -> None:
    try:
        decode_record(line)
    except BadInput:
        pass


REPLAY_MODEL = replace(
    MODEL,
    itl_seconds=0.2,
    pools=(PoolSpec("main", maximum=20, profile=builtin_profile("l4-qwen8b")),),
    itl_bounds=(0.2,),
)


def read_back(tick: int, model: ModelSpec, seen: Observation, core: ScalingCore, *, has_state: bool) -> TickRecord:
    """Returns the record of the core's next decision, written and read."""
    before = core.state if has_state else None
    return decode_record(encode_record(TickRecord(1e9 + 5.0 * tick, model, seen, core.step(seen), before=before)))


@cache
def recorded(ticks: int, state_every: int = 1) -> list[TickRecord]:
    """Returns the records of a load that doubles in the middle; plans are fulfilled at once."""
    core, desired, looks = ScalingCore(REPLAY_MODEL), 2, []
    for tick in range(ticks):
        requests = 5.0 if tick < ticks // 2 else 10.0
        share = requests / desired
        counters = (500 * share, 100 * share, 8.0 * share, share, share)
        replicas = tuple(
            ReplicaMetrics(f"r{n}", ReplicaState.READY, 500.0, 20.0, 4.0, 0.0, 0.2, *counters) for n in range(desired)
        )
        pools = {"main": PoolObservation(desired, desired, replicas=replicas)}
        seen = Observation(5.0 * tick, GatewayTraffic(requests, 500 * requests), pools)
        looks.append(read_back(tick, REPLAY_MODEL, seen, core, has_state=tick % state_every == 0))
        desired = looks[-1].plan.pools["main"].replicas
    return looks


def test_the_recorded_settings_decide_as_they_did_also_through_json() -> None:
    (replayed,) = replay(recorded(150), SettingChanges())
    assert (replayed.model, replayed.pool, replayed.has_state, replayed.deviations) == ("default/tiny", "main", True, 0)
    assert len(replayed.moments) == 150
    assert replayed.differences() == []
    assert replayed.mean_need("again") == replayed.mean_need("other") == replayed.mean_need("recorded")


def test_a_window_in_the_middle_begins_with_what_the_core_knew_then() -> None:
    looks = recorded(150, state_every=60)[50:]
    (replayed,) = replay(looks, SettingChanges())
    assert replayed.has_state
    assert replayed.moments[0].wall == looks[10].wall
    assert replayed.deviations == 0


MIXED = replace(
    REPLAY_MODEL,
    pools=(
        PoolSpec("S", maximum=30, profile=small_profile()),
        PoolSpec("L", cost_per_hour=3.7, minimum=0, maximum=9, profile=large_profile()),
    ),
)


@cache
def mixed(ticks: int) -> list[TickRecord]:
    """Returns the records of two pools under a steady load.

    A solver wants one large and one small replica, and replies three ticks after the query.
    """
    core, there, looks, answers = ScalingCore(MIXED), {"S": 9, "L": 0}, [], dict[int, dict[str, MixResult]]()
    for tick in range(ticks):
        seen = Observation(
            5.0 * tick,
            GatewayTraffic(40.0, 40_000.0),
            {name: PoolObservation(count, count, replicas=()) for name, count in there.items()},
            shapes=(ShapeCount(1_000.0, 200.0, 45.0), ShapeCount(200.0, 400.0, 5.0)),
            mixes=answers.get(tick, {}),
        )
        looks.append(read_back(tick, MIXED, seen, core, has_state=tick % 36 == 0))
        plan = looks[-1].plan
        answers[tick + 3] = {role: MixResult(query.at, {"S": 1, "L": 1}, "milp") for role, query in plan.asks.items()}
        there = {name: pool.replicas for name, pool in plan.pools.items()}
    return looks


def nobody(asked: MixRequest) -> MixResult:
    raise AssertionError(asked)


def test_a_mix_that_was_asked_for_is_replayed_with_the_answer_that_came_then() -> None:
    looks = mixed(160)
    assert sum(bool(look.plan.asks) for look in looks) == 3
    whole = replay(looks, SettingChanges(), nobody)
    from_an_open_question = replay(looks[36:], SettingChanges(), nobody)
    assert {replayed.deviations for replayed in (*whole, *from_an_open_question)} == {0}
    large_ones = next(replayed for replayed in whole if replayed.pool == "L")
    assert large_ones.moments[-1].reproduced.inputs["mix_replicas"].value == 1.0


def test_a_mix_that_was_not_asked_for_is_solved_and_told_at_the_next_look() -> None:
    def one_more(asked: MixRequest) -> MixResult:
        return MixResult(asked.at, {"S": 1, "L": 2}, "milp")

    looks = [replace(look, observation=replace(look.observation, mixes={})) for look in mixed(160)]
    changes = parse_changes(["target=0.9"])
    large_ones = next(replayed for replayed in replay(looks, changes, one_more) if replayed.pool == "L")
    assert large_ones.moments[-1].changed.inputs["mix_replicas"].value == 2.0
    unanswered = next(replayed for replayed in replay(looks, changes) if replayed.pool == "L")
    assert "mix_replicas" not in unanswered.moments[-1].changed.inputs


def test_without_what_it_knew_it_begins_anew_and_says_so() -> None:
    (replayed,) = replay([replace(look, before=None) for look in recorded(30)], SettingChanges())
    assert not replayed.has_state
    assert len(replayed.moments) == 30


def test_other_settings_decide_otherwise_and_each_difference_is_told_once() -> None:
    (replayed,) = replay(recorded(150), parse_changes(["itl=0.08"]))
    needed = replayed.mean_need("other"), replayed.mean_need("again")
    assert needed[0] is not None
    assert needed[1] is not None
    assert needed[0] > needed[1] > 0.0
    differences = replayed.differences()
    assert 0 < len(differences) < len(replayed.moments)
    assert all(moment.reproduced.replicas != moment.changed.replicas for moment in differences)


def test_models_and_objectives_are_told_apart() -> None:
    other = [replace(look, model=replace(look.model, name="default/other")) for look in recorded(20)]
    pools = replay([*recorded(20), *other], parse_changes(["ttft=0.5", "target=0.999"]))
    assert [replayed.model for replayed in pools] == ["default/other", "default/tiny"]


def test_settings_are_read_by_their_kind() -> None:
    changes = parse_changes(["goal_usual=0.8", "freeze=true", "target=0.95", "itl=0.1"])
    assert changes == SettingChanges({"goal_usual": 0.8, "freeze": True}, {"target": 0.95, "itl_seconds": 0.1})
    model, settings = changes.apply_to(recorded(1)[0])
    assert (model.target, model.itl_seconds) == (0.95, 0.1)
    assert settings == ScalingSettings().with_values({"goal_usual": 0.8, "freeze": True})


@pytest.mark.parametrize(
    "text",
    [
        "goal_usual",
        "goal_usual=",
        "goal_usual=much",
        "goal_usual=nan",
        "goal_usual=inf",
        "freeze=maybe",
        "budget_reserv=1",
        "window_seconds=-5",
        "period=60",
    ],
)
def test_what_is_no_setting_or_no_value_of_it_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--set"):
        parse_changes([text])


def test_settings_with_which_nothing_can_be_decided_are_refused() -> None:
    with pytest.raises(BadInput, match="nothing can be decided"):
        replay(recorded(30), parse_changes(["drain_seconds=0"]))

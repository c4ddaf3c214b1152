"""Decisions can be read again exactly; memory and files stay within their limits."""

import errno
import io
import resource
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ScalingCore,
)
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.enforcer import EnforcedPlan
from fairlead_autoscaler.history.recorder import (
    RecordBuffer,
    RecordFiles,
    TickRecord,
    decode_record,
    encode_record,
    read_records,
    record_files,
)

MODEL = ModelSpec("default/tiny", 2.0, 0.05, (PoolSpec("main", maximum=4),), ttft_bounds=(2.0,), itl_bounds=(0.05,))


def looks(count: int, model: ModelSpec = MODEL) -> list[TickRecord]:
    core, found = ScalingCore(model), []
    for tick in range(count):
        replica = ReplicaMetrics(
            "a", ReplicaState.READY, 50.0 + 5 * tick, 3.0, 2.0, 0.0, 0.1, 900.0, 500.0, 9.5, 12.0, 12.0
        )
        pool = PoolObservation(1, 1, replicas=(replica,))
        before = core.state
        seen = Observation(5.0 * tick, GatewayTraffic(12.0, 9_000.0), {"main": pool}, 1_000.0 + 5.0 * tick)
        ruling = {"main": EnforcedPlan(1, 1, "enough", "as it is", 1)}
        found.append(TickRecord(seen.wall or 0.0, model, seen, core.step(seen), ruling, before=before))
    return found


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
    ring = RecordBuffer(Limits())
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
    made = looks(10)
    size = max(len(encode_record(look)) for look in made)
    ring = RecordBuffer(replace(Limits(), autoscaler_ring_bytes=3 * size))
    for look in made:
        ring.add(look, encode_record(look))
    kept = [decode_record(line).wall for line in ring.lines()]
    assert kept[-1] == made[-1].wall
    assert 3 <= len(kept) < 10


def test_files_follow_one_another_and_the_oldest_go(tmp_path: Path) -> None:
    made = looks(9)
    size = max(len(encode_record(look)) for look in made) + 1
    limits = replace(Limits(), autoscaler_file_bytes=2 * size, autoscaler_files=2)
    files = RecordFiles(tmp_path / "kept", limits)
    for look in made:
        files.add(encode_record(look))
    assert len(record_files(tmp_path / "kept")) == 2
    assert [look.wall for look in read_records(tmp_path / "kept")] == [look.wall for look in made][-3:]


def test_another_process_goes_on_with_the_next_file(tmp_path: Path) -> None:
    for look in looks(2):
        RecordFiles(tmp_path, Limits()).add(encode_record(look))
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
    files = RecordFiles(tmp_path, Limits())
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
    files = RecordFiles(tmp_path / "file" / "kept", Limits())
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

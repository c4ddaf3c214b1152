"""The reader of Mooncake's format, and changes of arrival times."""

import hashlib
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import BadInput
from fairlead_sim.workload.traces import (
    BUNDLED_TRACE,
    TraceError,
    TraceRequest,
    at_rate,
    ideal_cached_share,
    read_mooncake,
    spread_ties,
)

NOTICE = BUNDLED_TRACE.with_name("NOTICE")


def line(timestamp: float = 0, tokens: int = 600, output: int = 5, ids: tuple[int, ...] = (0, 1)) -> str:
    return json.dumps({"timestamp": timestamp, "input_length": tokens, "output_length": output, "hash_ids": ids})


def request(arrival: float, number: int = 0) -> TraceRequest:
    return TraceRequest(f"r{number}", arrival, 10, 1, (0,))


def test_a_line_becomes_a_request_with_seconds_and_blocks(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(line(timestamp=2_500, tokens=600, output=7, ids=(0, 9)) + "\n\n")
    assert read_mooncake(file) == [TraceRequest("r1", 2.5, 600, 7, (0, 9))]


def test_longer_prompts_are_left_out_before_the_limit_counts(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    long = line(tokens=20_481, ids=tuple(range(41)))
    file.write_text("\n".join([long, line(timestamp=1), long, line(timestamp=2), line(timestamp=3)]))
    assert [item.id for item in read_mooncake(file, limit=2)] == ["r2", "r4"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"timestamp": 1', ":2: "),
        ('{"timestamp": 1, "input_length": 5}', "output_length"),
        (line(tokens=513, ids=(0,)), "513 tokens are 2 blocks"),
        (line(tokens=0, ids=()), "at least 1"),
        (line(timestamp=-1), "negative"),
        ('{"timestamp": "x", "input_length": 5, "output_length": 5, "hash_ids": [0]}', "timestamp"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(line() + "\n" + text + "\n")
    with pytest.raises(TraceError) as caught:
        read_mooncake(file)
    assert f"{file}:2: " in str(caught.value)
    assert says in str(caught.value)


def test_missing_and_empty_files_have_different_errors(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        read_mooncake(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(TraceError, match="no request"):
        read_mooncake(tmp_path / "empty.jsonl")


def test_ties_are_spread_evenly_up_to_the_next_timestamp() -> None:
    spread = spread_ties([request(0), request(0), request(3), request(6), request(6), request(6)])
    assert [item.arrival for item in spread] == [0, 1.5, 3, 6, 7, 8]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_spreading_keeps_every_request_and_its_order(seconds: list[int]) -> None:
    before = [request(float(second), number) for number, second in enumerate(sorted(seconds))]
    after = spread_ties(before)
    assert [item.id for item in after] == [item.id for item in before]
    assert all(a.arrival <= b.arrival for a, b in itertools.pairwise(after))
    assert all(new.arrival >= old.arrival for new, old in zip(after, before, strict=True))


@given(st.lists(st.floats(0, 1e4), min_size=2, max_size=60), st.floats(0.1, 100))
def test_scaling_starts_at_zero_and_meets_the_rate(seconds: list[float], rate: float) -> None:
    scaled = at_rate([request(second, number) for number, second in enumerate(sorted(seconds))], rate)
    assert scaled[0].arrival == 0
    assert scaled[-1].arrival == pytest.approx((len(scaled) - 1) / rate)


def test_a_rate_must_be_positive() -> None:
    with pytest.raises(BadInput):
        at_rate([request(0)], 0)


def test_reuse_counts_only_an_unbroken_prefix() -> None:
    first = TraceRequest("a", 0, 1_024, 1, (0, 1))
    second = TraceRequest("b", 1, 1_536, 1, (0, 2, 1))
    assert ideal_cached_share([first, second]) == pytest.approx(512 / 2_560)


def test_the_bundled_trace_is_the_first_thousand_requests_of_at_most_20480_tokens() -> None:
    requests = read_mooncake(BUNDLED_TRACE)
    assert len(requests) == 1_000
    assert {item.blocks[0] for item in requests} == {0}
    assert max(item.prompt_tokens for item in requests) <= 20_480
    assert (requests[0].id, requests[-1].id) == ("r1", "r1241"), "241 longer prompts are left out"
    assert ideal_cached_share(requests) == pytest.approx(0.236, abs=0.001)


def test_the_notice_names_the_bundled_trace_by_its_checksum() -> None:
    assert hashlib.sha256(BUNDLED_TRACE.read_bytes()).hexdigest() in NOTICE.read_text()


def test_a_damaged_archive_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(BUNDLED_TRACE.read_bytes()[:1_000])
    with pytest.raises(TraceError, match=r"trace\.jsonl\.gz: the trace cannot be read"):
        read_mooncake(path)

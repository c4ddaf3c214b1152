"""Sources of simulated traffic: a family by its name, or a file in a known format."""

from pathlib import Path

import pytest

from fairlead.errors import BadInput
from fairlead_sim.workload.sources import GENERATED_SOURCES, load_source
from fairlead_sim.workload.traces import TraceError, read_azure

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
LINES = "2023-11-16 18:15:50.9951690,600,109\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:51,30000,5\n"


def trace(folder: Path, text: str) -> Path:
    file = folder / "trace.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_azures_requests_come_by_arrival_and_share_nothing(tmp_path: Path) -> None:
    first, second = read_azure(trace(tmp_path, HEAD + LINES))
    assert (first.arrival, first.prompt_tokens, first.output_tokens) == (0.0, 374, 44)
    assert second.arrival == pytest.approx(4.314579)
    assert [len(first.blocks), len(second.blocks)] == [1, 2]
    assert not {*first.blocks} & {*second.blocks}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TIMESTAMP,ContextTokens\n", ":1: there is no column GeneratedTokens"),
        (HEAD, "no request of at most 20480 prompt tokens"),
        (HEAD + "yesterday,1,1\n", ":2: "),
        (HEAD + "2023-11-16 18:15:46,many,1\n", ":2: "),
        (HEAD + "2023-11-16 18:15:46,5,0\n", ":2: ContextTokens and GeneratedTokens must be at least 1"),
        (HEAD + "2023-11-16 18:15:46,5\n", ":2: "),
    ],
)
def test_a_file_that_is_none_is_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(TraceError, match=r"trace\.csv") as caught:
        read_azure(trace(tmp_path, text))
    assert words in caught.value.message


def test_a_file_is_read_in_the_format_that_its_first_line_has(tmp_path: Path) -> None:
    assert len(load_source(str(trace(tmp_path, HEAD + LINES))).requests) == 2
    mooncake = '{"timestamp": 5, "input_length": 600, "output_length": 3, "hash_ids": [7, 8]}\n'
    (only,) = load_source(str(trace(tmp_path, mooncake))).requests
    assert only.blocks == (7, 8)


@pytest.mark.parametrize("name", GENERATED_SOURCES)
def test_generated_traffic_is_found_by_its_name_and_equal_from_equal_seeds(name: str) -> None:
    one, two, other = (load_source(name, limit=50, seed=seed) for seed in (1, 1, 2))
    assert len(one.requests) == 50
    assert one.requests == two.requests
    assert one.requests != other.requests
    assert one.rate > 0.0


def test_what_is_neither_is_refused_with_what_there_is() -> None:
    with pytest.raises(BadInput) as caught:
        load_source("agent")
    assert "agents" in (caught.value.hint or "")

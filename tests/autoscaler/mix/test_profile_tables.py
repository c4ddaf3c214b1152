"""Tables of measured throughput are read from CSV and JSON; errors name their place."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import BadInput, ManifestError
from fairlead_autoscaler.mix.profile_tables import flatten, load_profile_table, parse_csv, parse_json

HEADER = "accelerator,cost_per_hour,prompt_tokens,output_tokens,requests_per_second"
GOOD = f"""{HEADER}
L4,0.8,256,64,4
L4,0.8,1024,64,1.5
H100,3.3,256,64,30
H100,3.3,1024,64,12
"""
OURS = {
    "prompt_tokens": [256, 1024],
    "output_tokens": [64],
    "accelerators": [
        {"name": "L4", "cost_per_hour": 0.8, "requests_per_second": [[4], [1.5]]},
        {"name": "H100", "cost_per_hour": 3.3, "requests_per_second": [[30], [12]]},
    ],
}
MELANGE = {
    "gpu_info": {"A100-80GB": {"cost": 3.67, "tputs": [[20, 2], [50, 20]]}},
    "workload_distribution": [[0.25, 0.125], [0.375, 0.25]],
    "total_request_rate": 8.0,
    "slice_factor": 1,
}


def problems(text: str, *, csv: bool = True) -> list[tuple[int, str]]:
    with pytest.raises(ManifestError) as caught:
        parse_csv(text) if csv else parse_json(text)
    return [(one.line, one.field) for one in caught.value.problems]


def test_csv_and_json_of_one_table_read_alike() -> None:
    table = parse_csv(GOOD)
    assert table == parse_json(json.dumps(OURS))
    assert table.prompt_tokens == (256.0, 1024.0)
    assert [one.name for one in table.accelerators] == ["L4", "H100"]
    assert flatten(table.accelerators[1].requests_per_second) == (30.0, 12.0)


def test_columns_may_stand_in_any_order_and_lines_too() -> None:
    lines = [line.split(",") for line in GOOD.split()]
    turned = "\n".join(",".join(reversed(line)) for line in [lines[0], lines[2], lines[1], *lines[3:]])
    assert parse_csv(turned) == parse_csv(GOOD)


def test_melange_s_configuration_is_read_as_it_is() -> None:
    table = parse_json(json.dumps(MELANGE))
    assert table.prompt_tokens is None
    assert table.rates == ((2.0, 1.0), (3.0, 2.0))
    assert table.accelerators[0].requests_per_second == ((20.0, 2.0), (50.0, 20.0))


@pytest.mark.parametrize(
    ("broken", "where"),
    [
        (GOOD.replace("L4,0.8,1024,64,1.5", "L4,0.8,1024,64,fast"), (3, "requests_per_second")),
        (GOOD.replace("L4,0.8,1024,64,1.5", "L4,0.8,1024,64,nan"), (3, "requests_per_second")),
        (GOOD.replace("L4,0.8,1024,64,1.5", "L4,0.8,-1024,64,1.5"), (3, "prompt_tokens")),
        (GOOD.replace("L4,0.8,1024,64,1.5", "L4,0.9,1024,64,1.5"), (3, "cost_per_hour")),
        (GOOD.replace("L4,0.8,1024,64,1.5", "L4,0.8,256,64,1.5"), (3, "prompt_tokens")),
        (GOOD.replace("L4,0.8,1024,64,1.5", ",0.8,1024,64,1.5"), (3, "accelerator")),
        (GOOD.replace("L4,0.8,1024,64,1.5", "L4,0.8"), (3, "prompt_tokens")),
        (GOOD.replace("output_tokens", "answer"), (1, "output_tokens")),
        (GOOD.replace("L4,0.8,1024,64,1.5\n", ""), (4, "requests_per_second")),
        (HEADER, (1, "accelerator")),
        ("", (1, "accelerator")),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_named_by_line_and_column(broken: str, where: tuple[int, str]) -> None:
    assert problems(broken)[0] == where


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"prompt_tokens": [1024, 256]}, "prompt_tokens[1]"),
        ({"output_tokens": []}, "output_tokens"),
        ({"accelerators": []}, "accelerators"),
        ({"accelerators": [{"name": 7}]}, "accelerators[0].name"),
        (
            {"accelerators": [OURS["accelerators"][0], {**OURS["accelerators"][1], "requests_per_second": [[30]]}]},
            "accelerators[1].requests_per_second",
        ),
        (
            {"accelerators": [{**OURS["accelerators"][0], "requests_per_second": [[4], [True]]}]},
            "accelerators[0].requests_per_second[1][0]",
        ),
        (
            {"accelerators": [{**OURS["accelerators"][0], "requests_per_second": [[4], [1, 2]]}]},
            "accelerators[0].requests_per_second[1]",
        ),
        ({"accelerators": [{**OURS["accelerators"][0], "cost_per_hour": None}]}, "accelerators[0].cost_per_hour"),
        ({"gpu_info": {"L4": {"cost": 1, "tputs": [[1]]}}}, "workload_distribution"),
    ],
)
def test_what_is_wrong_with_a_json_file_is_named_by_its_path(change: dict[str, object], where: str) -> None:
    assert problems(json.dumps({**OURS, **change}), csv=False)[0][1] == where


def test_every_problem_is_told_at_once() -> None:
    assert problems(GOOD.replace(",4\n", ",x\n").replace(",12\n", ",y\n")) == [
        (2, "requests_per_second"),
        (5, "requests_per_second"),
    ]


def test_a_file_is_read_by_its_ending(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(GOOD)
    (tmp_path / "t.JSON").write_text(json.dumps(OURS))
    (tmp_path / "t.txt").write_text(GOOD)
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe")
    assert load_profile_table(tmp_path / "t.csv") == load_profile_table(tmp_path / "t.JSON")
    for name in ("t.txt", "none.csv", "b.csv"):
        with pytest.raises(BadInput):
            load_profile_table(tmp_path / name)


@given(
    st.one_of(st.text(), st.text(alphabet='{}[]",:01\n\r'), st.just("[" * 100_000), st.just("[1" + "0" * 5_000 + "]"))
)
def test_no_text_gives_anything_but_a_table_or_its_problems(text: str) -> None:
    for read in (parse_csv, parse_json):
        with suppress(ManifestError):
            assert read(text).accelerators


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1e400"])
def test_numbers_beyond_all_bounds_are_problems(number: str) -> None:
    text = json.dumps(OURS).replace("30", number)
    assert problems(text, csv=False) == [(1, "accelerators[1].requests_per_second[0][0]")]

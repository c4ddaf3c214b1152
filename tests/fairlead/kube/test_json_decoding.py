"""JSON that is nested deeper than a decoder can read loses what is too deep, and nothing else."""

import json

import pytest

from fairlead.kube.json_decoding import cut_nesting, decode_json


@pytest.mark.parametrize(("opening", "closing"), [('{"a":', "}"), ("[", "]"), ('[{"a":', "}]")])
def test_value_nested_10000_levels_keeps_its_upper_levels_and_neighbours(opening: str, closing: str) -> None:
    deep = opening * 10_000 + "1" + closing * 10_000
    found = decode_json(f'{{"deep": {deep}, "next": [1, {{"b": 2}}]}}'.encode())
    assert found["next"] == [1, {"b": 2}]
    assert found["deep"]


def test_only_what_lies_below_the_last_level_becomes_null() -> None:
    value = {"a": [{"b": {"c": 1}}], 'quoted \\"{[': '{"[}\\', "e": [], "f": {}}
    for depth in range(1, 6):
        cut = json.loads(cut_nesting(json.dumps(value).encode(), depth))
        assert cut == _cut(value, depth)


def _cut(value: object, depth: int) -> object:
    if not isinstance(value, dict | list):
        return value
    if depth == 0:
        return None
    if isinstance(value, dict):
        return {name: _cut(inner, depth - 1) for name, inner in value.items()}
    return [_cut(inner, depth - 1) for inner in value]

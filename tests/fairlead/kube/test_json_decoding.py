"""JSON that is nested deeper than a decoder can read loses what is too deep, and nothing else."""

import json

import msgspec
import pytest

from fairlead.kube.json_decoding import cut_nesting, decode_json, decode_object, decode_page
from fairlead.kube.resources import CONTROLLER_REVISIONS
from fairlead.kube.watch_events import parse_watch_event


@pytest.mark.parametrize(("opening", "closing"), [('{"a":', "}"), ("[", "]"), ('[{"a":', "}]")])
def test_value_nested_10000_levels_keeps_its_upper_levels_and_neighbours(opening: str, closing: str) -> None:
    deep = opening * 10_000 + "1" + closing * 10_000
    decoded = decode_json(f'{{"deep": {deep}, "next": [1, {{"b": 2}}]}}'.encode())
    assert decoded["next"] == [1, {"b": 2}]
    assert decoded["deep"]


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


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (rb"\ud800", "\N{REPLACEMENT CHARACTER}"),
        (rb"\uDfFF and \ud83d\ude00", "\N{REPLACEMENT CHARACTER} and \N{GRINNING FACE}"),
        (rb"\ud800\ud83d\ude00", "\N{REPLACEMENT CHARACTER}\N{GRINNING FACE}"),
        (rb"\\ud800 \"\ud800\"", '\\ud800 "\N{REPLACEMENT CHARACTER}"'),
        (b"\xff\\ud800", "\N{REPLACEMENT CHARACTER}" * 2),
        ("\N{GRINNING FACE}".encode() + b"\xf0\x9f", "\N{GRINNING FACE}\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_text_that_is_no_unicode_is_replaced_and_its_neighbours_are_read(stored: bytes, read: str) -> None:
    first, second = b'{"metadata":{"name":"a"},"data":{"x":"' + stored + b'"}}', b'{"metadata":{"name":"b"}}'
    assert decode_object(first)["data"]["x"] == read
    body = b'{"metadata":{"resourceVersion":"7"},"items":[' + first + b"," + second + b"]}"
    items = decode_page(body, CONTROLLER_REVISIONS, lambda item: item).items
    assert [item["metadata"]["name"] for item in items] == ["a", "b"]
    assert items[0]["data"]["x"] == read
    event = parse_watch_event(b'{"type":"ADDED","object":{"kind":"ControllerRevision",' + first[1:] + b"}", "watch")
    assert event.object["data"]["x"] == read
    known = parse_watch_event(
        b'{"type":"ADDED","object":{"kind":"ControllerRevision",' + first[1:] + b"}", "watch", lambda _: None
    )
    assert known.object["data"]["x"] == read


def test_deep_value_with_text_that_is_no_unicode_keeps_its_neighbours() -> None:
    deep = b"[" * 10_000 + rb'"\ud800"' + b"]" * 10_000
    decoded = decode_json(b'{"deep": ' + deep + rb', "next": "\ud800' + b'\xff"}')
    assert decoded["next"] == "\N{REPLACEMENT CHARACTER}" * 2


@pytest.mark.parametrize("text", [b"", b"{", b'{"a":1e999}', rb'{"a":"\u12"}', rb'{"a":"\ud8"}', b"\xff"])
def test_invalid_json_stays_an_error(text: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_json(text)

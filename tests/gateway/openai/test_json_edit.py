"""Splicing JSON: the value is what was asked for, and every other byte is where it was."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.openai import json_edit
from fairlead_gateway.openai.json_edit import (
    contains_any,
    prepend_members,
    replace_first_member,
    replace_scanned_text,
    rewrite_members,
    set_members,
    string_end,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
KEYS = st.sampled_from(["model", "stream_options", 'mo"del', "a\\", "é", "\U0001f600"])
OBJECTS = st.dictionaries(KEYS | st.text(max_size=8), VALUES, min_size=1, max_size=6)


@given(OBJECTS, VALUES, st.sampled_from([None, 2]), st.booleans())
def test_a_spliced_object_is_the_object_with_that_field_set(
    before: dict[str, object], value: object, indent: int | None, plain: bool
) -> None:
    text = json.dumps(before, indent=indent, ensure_ascii=plain).encode()
    after = set_members(text, {"model": json.dumps(value).encode()})
    assert json.loads(after) == before | {"model": value}
    if "model" not in before:
        assert after.replace(b'"model":' + json.dumps(value).encode() + b",", b"", 1) == text


def test_a_key_that_is_given_twice_is_replaced_twice() -> None:
    text = b'{"model":"a","x":{"model":"b"},"mod\\u0065l" : "c"}'
    assert set_members(text, {"model": b"1"}) == b'{"model":1,"x":{"model":"b"},"mod\\u0065l" : 1}'


@given(OBJECTS, VALUES, st.sampled_from([None, 2]))
def test_a_field_that_is_not_there_is_added_without_looking_at_the_others(
    before: dict[str, object], value: object, indent: int | None
) -> None:
    before.pop("model", None)
    text = json.dumps(before, indent=indent).encode()
    assert json.loads(prepend_members(text, {"model": json.dumps(value).encode()})) == before | {"model": value}


@pytest.mark.parametrize("long", [b'"' + b"x" * 3_000_000 + b'"', b'"' + rb"\"" * 1_500_000 + b'"', b"1" * 3_000_000])
@pytest.mark.parametrize("shift", range(4))
def test_values_longer_than_a_slice_are_passed_over_whole(long: bytes, shift: int) -> None:
    for value in (long, b'["", {"a": ' + long + b"}, []]"):
        text = b'{"x":' + b" " * shift + value + b',"model":"a", "y":' + value + b"}"
        assert set_members(text, {"model": b'"b"'}) == text.replace(b'"model":"a"', b'"model":"b"')


@pytest.mark.parametrize("parts", [1, 20, 31, 32, 33, 63, 64, 65, 200])
@pytest.mark.parametrize("part", [b'"a"', rb'"\"]}\\"', b'{"role":"user","content":"[{"}', b"[[],{}]", b"1"])
def test_values_of_few_and_of_many_parts_are_passed_over_whole(part: bytes, parts: int) -> None:
    value = b"[" + b", ".join([part] * parts) + b"]"
    text = b'{"x":' + value + b',"model":"a","y":' + value + b"}"
    assert set_members(text, {"model": b'"b"'}) == text.replace(b'"model":"a"', b'"model":"b"')


def test_into_an_empty_object_and_before_others() -> None:
    assert set_members(b"{}", {"a": b"1"}) == b'{"a":1}'
    assert set_members(b" { } ", {"a": b"1"}) == b' {"a":1 } '
    assert set_members(b'{"b":2}', {"a": b"1", "b": b"3"}) == b'{"a":1,"b":3}'


def test_long_strings_of_escapes_take_no_memory_to_speak_of() -> None:
    text = b'{"x":"' + b"\\n" * 2_000_000 + b'","model":"a"}'
    assert set_members(text, {"model": b'"b"'}) == text[:-4] + b'"b"}'


@given(OBJECTS, st.sets(KEYS), st.sampled_from([None, 2]), st.sampled_from([3, 16, 1 << 18]))
def test_removed_members_leave_the_others_and_valid_json(
    before: dict[str, object], removed: set[str], indent: int | None, slice_bytes: int
) -> None:
    text = json.dumps(before, indent=indent).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_edit, "_SLICE_BYTES", slice_bytes)  # what is longer is copied in slices
        after = rewrite_members(text, lambda key, value: None if key in removed else value)
    assert json.loads(after) == {key: value for key, value in before.items() if key not in removed}


@pytest.mark.parametrize("at", range(20))
def test_pattern_across_two_slices_is_found(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_edit, "_SLICE_BYTES", 8)
    assert contains_any(b"." * at + b"needle" + b"." * 9, (b"other", b"needle"))
    assert not contains_any(b"." * at + b"needl" + b"." * 9, (b"other", b"needle"))


MODEL = (b'{"model":"', b'{"model": "')


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a","x":1}', b'{"model":"new","x":1}'),
        (b'{"model": "a\\"b"}', b'{"model": "new"}'),
        (b'{"model":"a","messages":"say \\"model\\": x"}', b'{"model":"new","messages":"say \\"model\\": x"}'),
        (b'{"x":1,"model":"a"}', None),
        (b' {"model":"a"}', None),
        (b'{"model":"a","model":"b"}', None),
        (b'{"model":"a","\\u006dodel":"b"}', None),
        (b'{"model":1}', None),
    ],
)
def test_first_member_is_replaced_only_where_it_is_the_only_one(body: bytes, expected: bytes | None) -> None:
    assert replace_first_member(body, MODEL, b'"new"') == expected
    if expected is not None:
        assert expected == set_members(body, {"model": b'"new"'})


def test_first_member_of_a_large_body_is_left_to_the_general_way() -> None:
    assert replace_first_member(b'{"model":"a","x":"' + b"y" * (1 << 18) + b'"}', MODEL, b'"new"') is None


@given(text=st.text(alphabet='"\\ab\n', max_size=40), tail=st.text(alphabet='"\\x', max_size=8))
def test_a_text_ends_at_its_own_quote(text: str, tail: str) -> None:
    written = json.dumps(text).encode()
    assert string_end(b"[" + written + tail.encode(), 1) == 1 + len(written)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"messages":[],"model":"a","n":1}', b'{"messages":[],"model":"b","n":1}'),
        (b'{"messages":[],"user":"model","model" : "a"}', None),
        (b'{"messages":[], "model" : "a"}', b'{"messages":[], "model" : "b"}'),
        (b'{"model":"a","messages":[]}', None),
    ],
)
def test_a_text_behind_the_messages_is_replaced(body: bytes, expected: bytes | None) -> None:
    assert replace_scanned_text(body, b'"model"', b'"b"', body.index(b"]")) == expected

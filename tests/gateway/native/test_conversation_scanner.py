"""The scanner ends the first message of a user where the way in Python does."""

import json
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.proxy.route_choice import MAX_MESSAGE_BYTES, usual_end

PARTS = st.sampled_from(
    [
        *(b'{"role":"user","content":"', b'{"role": "user", "content": "', b'{"role":"system","content":"be kind"},'),
        *(b'"}', b'"', b"\\", b'\\"', b"}", b"hello", b"\xc3\xa9", b'"user"', b",", b"x" * 300),
    ]
)
TEXTS = st.lists(PARTS, max_size=12).map(b"".join)


def check_equal(modules: dict[str, ModuleType], text: bytes, start: int, end: int) -> int:
    expected = usual_end(text, start, end)
    assert modules["conversation_scanner"].user_message_end(text, start, end, MAX_MESSAGE_BYTES) == expected
    return expected


@pytest.mark.property
@given(text=TEXTS, bounds=st.tuples(st.integers(0, 60), st.integers(0, 60)))
def test_both_ways_end_at_the_same_byte(
    native_modules: dict[str, ModuleType], text: bytes, bounds: tuple[int, int]
) -> None:
    start = min(bounds[0], len(text))
    check_equal(native_modules, text, start, max(start, len(text) - bounds[1]))


@pytest.mark.parametrize("spacing", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("content", ["", "hello", 'say "hi"\n', "ends with \\", "é" * 40])
def test_usual_messages_are_found(
    native_modules: dict[str, ModuleType], spacing: tuple[str, str], content: str
) -> None:
    system, user = {"role": "system", "content": "be kind"}, {"role": "user", "content": content}
    text = json.dumps([system, user, {"role": "assistant", "content": "yes"}], separators=spacing).encode()
    end = check_equal(native_modules, text, 1, len(text) - 1)
    assert json.loads(text[:end] + b"]") == [system, user]


@pytest.mark.parametrize("size", range(-40, 40, 3))
@pytest.mark.parametrize("rest", [b"", b'"}', b'"},{"role":"assistant","content":"yes"}'])
@pytest.mark.parametrize("escape", [b"", b'\\"', b"\\\\"])
def test_long_messages_end_at_the_same_byte(
    native_modules: dict[str, ModuleType], size: int, rest: bytes, escape: bytes
) -> None:
    text = b'[{"role":"user","content":"' + escape + b"x" * (MAX_MESSAGE_BYTES - 40 + size) + rest + b"]"
    for end in range(len(text) - 3, len(text) + 1):
        check_equal(native_modules, text, 1, end)

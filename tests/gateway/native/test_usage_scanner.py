"""A response that the scanner accepts is valid, with the counts that the way in Python reads."""

import json
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.upstream.response_schemas import PLAIN_RESPONSE_DECODER
from fairlead_gateway.upstream.usage import Usage, read_usage, scanned_usage, usage_of_named

USAGE = {"prompt_tokens": 512, "completion_tokens": 128, "total_tokens": 640}
RESPONSE = {
    "id": "chatcmpl-1",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": 'é "x"\n', "tool_calls": []}, "logprobs": None}
    ],
    "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 256, "audio_tokens": None}},
    "numbers": [-0.5, 1e-05, 0, {}, True, False],
}
BODIES = [
    json.dumps(RESPONSE).encode(),
    json.dumps(RESPONSE, ensure_ascii=False, indent=1).encode(),
    json.dumps({**RESPONSE, "usage": None}).encode(),
    json.dumps({**RESPONSE, "usage": {**USAGE, "prompt_tokens_details": None, "completion_tokens": None}}).encode(),
    b'{"usage":{"prompt_tokens":3}}',
    b'{"choices":[{}]}',
]
TOKENS = [
    *('{"', '":', "}", "[", "]", ",", '"usage":', '"usage":{', '"prompt_tokens":', '"completion_tokens":', "null", "5"),
    *('"input_tokens":', '"output_tokens":', '"input_tokens_details":{', '"cache_read_input_tokens":'),
    '"cache_creation_input_tokens":',
    *(
        '"prompt_tokens_details":{',
        '"cached_tokens":',
        '"usag\\u0065":',
        "-1",
        "1.0",
        "1e400",
        '"x"',
        '"x":',
        "99999999999",
    ),
]


def _counts(usage: Usage | None) -> tuple[int | None, ...] | None:
    return None if usage is None else (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


def check_equal(modules: dict[str, ModuleType], body: bytes) -> bool:
    """Compares both ways, in both forms of counts; returns whether the scanner accepts the body."""
    named = modules["usage_scanner"].scan_named_usage(body)
    if named is not None:
        expected = _counts(usage_of_named(PLAIN_RESPONSE_DECODER.decode(body).usage))
        found = _counts(scanned_usage(named))
        assert found == expected or (expected is None and found is not None and found[:2] == (None, None))
    scanned = modules["usage_scanner"].scan_usage(body)
    if scanned is None:
        return False
    decoded = PLAIN_RESPONSE_DECODER.decode(body)  # raises for a body that must be refused
    json.loads(body)
    assert _counts(scanned_usage(scanned)) == _counts(read_usage(decoded.usage))
    return True


@pytest.mark.parametrize("body", BODIES)
def test_usual_responses_are_accepted(native_modules: dict[str, ModuleType], body: bytes) -> None:
    assert check_equal(native_modules, body)
    assert not any(check_equal(native_modules, body[:size]) for size in range(len(body)))


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"input_tokens": 9, "output_tokens": 3}, (9, 3, None)),
        ({"input_tokens": 9, "cache_read_input_tokens": 20, "output_tokens": 3}, (29, 3, 20)),
        ({"cache_creation_input_tokens": 5, "input_tokens": 9, "cache_read_input_tokens": 20}, (34, None, 20)),
        ({"input_tokens": 9, "input_tokens_details": {"cached_tokens": 8, "x": [1]}, "output_tokens": 3}, (9, 3, 8)),
        ({"input_tokens": 9, "input_tokens_details": None, "output_tokens": 3}, (9, 3, None)),
    ],
)
def test_counts_of_messages_and_responses_are_read(
    native_modules: dict[str, ModuleType], usage: dict[str, object], counts: tuple[int | None, ...]
) -> None:
    body = json.dumps({"id": "x", "content": [{"text": "a"}], "usage": usage}).encode()
    scanned = native_modules["usage_scanner"].scan_named_usage(body)
    assert scanned is not None
    assert _counts(scanned_usage(scanned)) == counts
    assert check_equal(native_modules, body)


@given(tokens=st.lists(st.sampled_from(TOKENS), max_size=14))
def test_accepted_responses_are_valid_and_equal(native_modules: dict[str, ModuleType], tokens: list[str]) -> None:
    check_equal(native_modules, ("{" + "".join(tokens) + "}").encode())


@given(data=st.data())
def test_changed_bytes_are_judged_alike(native_modules: dict[str, ModuleType], data: st.DataObject) -> None:
    body = bytearray(data.draw(st.sampled_from(BODIES)))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(body)))
        body[start : start + data.draw(st.integers(0, 3))] = data.draw(
            st.one_of(st.binary(max_size=3), st.sampled_from(TOKENS).map(str.encode))
        )
    check_equal(native_modules, bytes(body))


@pytest.mark.parametrize("body", [b'{"choices":[]}', b'{"choices" : [ ]}', b'{"id":"a","choices":null,"usage":{}}'])
def test_responses_without_choices_are_left_to_the_other_way(
    native_modules: dict[str, ModuleType], body: bytes
) -> None:
    assert not check_equal(native_modules, body)


def test_deep_responses_are_left_to_the_other_way(native_modules: dict[str, ModuleType]) -> None:
    assert check_equal(native_modules, b'{"a":' + b"[" * 30 + b"]" * 30 + b"}")
    assert not check_equal(native_modules, b'{"a":' + b"[" * 40 + b"]" * 40 + b"}")

"""The identity of a conversation: all of its turns have it, and other conversations do not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.proxy.route_choice import conversation_end, prompt_digest, session_digest

SYSTEM = {"role": "system", "content": 'You are {"role":"user"} helpful.'}
TEXTS = st.text(max_size=30)
MESSAGES = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(("system", "user", "assistant", "tool")),
        TEXTS | TEXTS.map(lambda text: [{"type": "text", "text": text}]),
    ),
    max_size=3,
)


def identity(messages: list[dict[str, Any]], **style: Any) -> bytes:
    text = json.dumps(messages, **style).encode()
    return prompt_digest(text, 1, len(text) - 1)


def last_first(message: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(message.items()))


@pytest.mark.parametrize("style", [{}, {"separators": (",", ":")}, {"indent": 2}, {"ensure_ascii": False}])
@pytest.mark.parametrize("order", [dict, last_first])
@given(first=TEXTS, later=MESSAGES, has_system=st.booleans())
def test_later_turns_keep_the_identity(order: Any, style: Any, first: str, later: Any, has_system: bool) -> None:
    opening = [*([SYSTEM] if has_system else []), {"role": "user", "content": first}]
    turns = [order(message) for message in (*opening, *later)]
    expected = identity(turns[: len(opening)], **style)
    assert all(identity(turns[:count], **style) == expected for count in range(len(opening), len(turns) + 1))


@given(first=TEXTS, later=MESSAGES, reversed_ones=st.lists(st.booleans(), min_size=5, max_size=5))
def test_order_of_fields_may_change_from_message_to_message(first: str, later: Any, reversed_ones: list[bool]) -> None:
    opening = [SYSTEM, {"role": "user", "content": first}]
    messages = [
        last_first(message) if is_reversed else message
        for message, is_reversed in zip((*opening, *later), reversed_ones, strict=False)
    ]
    expected = identity(messages[:2])
    assert all(identity(messages[:count]) == expected for count in range(2, len(messages) + 1))


def test_of_a_long_question_the_first_part_counts() -> None:
    question = {"role": "user", "content": "x\n" * 20_000}
    assert identity([question]) == identity([question, {"role": "assistant", "content": "hi"}])
    assert identity([question]) != identity([{"role": "user", "content": "y" + "x\n" * 20_000}])


@pytest.mark.parametrize("order", [dict, last_first])
def test_first_question_distinguishes_conversations(order: Any) -> None:
    identities = {identity([order(SYSTEM), order({"role": "user", "content": f"{number}"})]) for number in range(100)}
    assert len(identities) == 100


def test_system_prompt_distinguishes_conversations() -> None:
    question = {"role": "user", "content": "Why?"}
    assert identity([SYSTEM, question]) != identity([question])


@given(st.binary(max_size=200))
def test_any_text_has_an_identity(text: bytes) -> None:
    assert len(prompt_digest(text, 0, len(text))) == 8


def test_tenants_do_not_share_names_of_sessions() -> None:
    assert len({session_digest(b"1", None), session_digest(b"1", "acme"), session_digest(b"1", "beta")}) == 3
    assert session_digest(b"1", "acme") == session_digest(b"1", "acme")


@given(first=TEXTS, later=MESSAGES, opening=MESSAGES, compact=st.booleans())
def test_usual_messages_have_the_identity_that_all_messages_read_would_give(
    first: str, later: Any, opening: Any, compact: bool
) -> None:
    """A first question in parts, or with its fields in another order, stays the first one."""
    messages = [*opening, {"role": "user", "content": first}, *later]
    text = json.dumps(messages, separators=(",", ":") if compact else None).encode()
    spaced = json.dumps([last_first(message) for message in messages], separators=(",", ":")).encode()
    number = next(index for index, message in enumerate(messages) if message["role"] == "user")
    for written, order in ((text, dict), (spaced, last_first)):
        whole = [order(message) for message in messages[: number + 1]]
        head = json.dumps(whole, separators=None if written is text and not compact else (",", ":")).encode()
        assert conversation_end(written, 1, len(written) - 1) == len(head) - 1


@pytest.mark.parametrize(
    "text", [b'{"role":"user","content":"', b'{"role":"user","content":"a"', b'x{"role":"user","content":"a"}']
)
def test_a_prompt_that_looks_like_the_start_of_a_message_has_an_identity(text: bytes) -> None:
    assert len(prompt_digest(text, 0, len(text))) == 8

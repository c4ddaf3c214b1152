"""The loop finds the words of an event that the Python code finds."""

from types import ModuleType

from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.upstream import event_words
from fairlead_gateway.upstream.event_words import words_of

PIECES = [*event_words.WORDS, b'"', b"\\", b"u", b"usage", b"null", b":[", b"{", b"}", b"\x00", b"\xff", b" "]
PIECES += [word[:-1] for word in event_words.WORDS]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
def test_loop_finds_the_same_words(native_modules: dict[str, ModuleType], event: bytes) -> None:
    found = native_modules["word_search"].find_words(event, event_words.WORDS)

    assert found == sum(1 << place for place, word in enumerate(event_words.WORDS) if word in event) == words_of(event)

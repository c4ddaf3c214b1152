"""Reply scripts: lengths, finish reasons, stop strings and requested forms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.generation.reply_script import ReplyLimits, minimal_value, natural_length, write_script

TOKENIZER = Tokenizer()


@given(st.text(max_size=8), st.integers(1, 300))
def test_text_reads_back_as_the_tokens_that_made_it(seed: str, tokens: int) -> None:
    script = write_script(TOKENIZER, seed, ReplyLimits(tokens))
    assert TOKENIZER.encode(script.text.decode()) == script.ids
    assert (len(script.ids), script.reason) == (tokens, "length")


@given(st.text(max_size=8), st.lists(st.text("abc ", min_size=1, max_size=5), max_size=4), st.integers(0, 40))
def test_a_stop_string_ends_the_text_right_before_it(seed: str, stop: list[str], min_tokens: int) -> None:
    script = write_script(TOKENIZER, seed, ReplyLimits(60, min_tokens=min_tokens, stop=tuple(stop)))
    whole = write_script(TOKENIZER, seed, ReplyLimits(60))
    assert whole.text.startswith(script.text)
    assert whole.ids[: len(script.ids)] == script.ids
    if script.reason == "stop":
        assert len(script.ids) > min_tokens
        assert whole.text[len(script.text) :].startswith(str(script.stop_reason).encode())
        assert len(script.text) < len(script.ids) * 4
    if not min_tokens and script.reason == "length":
        assert not any(each.encode() in whole.text for each in stop)


@given(st.text(max_size=8), st.lists(st.text("abc ", min_size=1, max_size=5), max_size=3))
def test_a_stream_never_shows_what_it_must_take_back(seed: str, stop: list[str]) -> None:
    script = write_script(TOKENIZER, seed, ReplyLimits(60, stop=tuple(stop)))
    shown = [script.streamed_bytes(count) for count in range(len(script.ids) + 1)]
    assert shown == sorted(shown)
    assert shown[-1] == len(script.text)


@given(st.text(max_size=60), st.integers(1, 80))
def test_a_requested_text_is_complete_or_cut_between_characters(text: str, tokens: int) -> None:
    script = write_script(TOKENIZER, "seed", ReplyLimits(tokens, forced_text=text))
    assert text.startswith(script.text.decode())
    assert (script.reason == "stop") == (
        script.text.decode() == text and len(script.ids) == len(TOKENIZER.encode(text)) + 1
    )
    assert [script.text_bytes(count) for count in range(len(script.ids))] == sorted(
        script.text_bytes(count) for count in range(len(script.ids))
    )


def test_natural_lengths_spread_around_their_median() -> None:
    assert natural_length("7", 2.0) == pytest.approx(2 * natural_length("7"), abs=1)
    lengths = sorted(natural_length(str(seed)) for seed in range(2_000))
    assert 100 < lengths[1_000] < 140
    assert lengths[100] < 60
    assert lengths[1_900] > 250
    assert lengths[0] >= 2
    assert lengths[-1] <= 2_000


def test_a_stop_token_ends_without_its_text() -> None:
    whole = write_script(TOKENIZER, "seed", ReplyLimits(20))
    script = write_script(TOKENIZER, "seed", ReplyLimits(20, stop_token_ids=frozenset({whole.ids[5]})))
    assert (script.ids, script.text, script.stop_reason) == (whole.ids[:6], whole.text[:20], whole.ids[5])


def test_a_schema_without_end_gets_an_end() -> None:
    tree = {"type": "object", "required": ["l", "r"], "properties": {"l": {"$ref": "#"}, "r": {"$ref": "#"}}}
    minimal = minimal_value(tree)
    assert set(minimal) == {"l", "r"}


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [True, True]),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"const": 7}, 7),
        ({"type": ["integer", "null"], "exclusiveMinimum": 4}, 5),
        ({"type": "string", "minLength": 12}, "simulated---"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"b": {"enum": [3]}}}}}, {"b": 3}),
        ({"type": "object", "properties": {"b": {"enum": [3]}}}, {"b": 3}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, None),
        ({"type": "object", "required": ["x"]}, {"x": "simulated"}),
    ],
)
def test_the_smallest_value_of_a_schema(schema: dict[str, object], wanted: object) -> None:
    assert minimal_value(schema) == wanted

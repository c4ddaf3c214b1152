"""Hidden counts of cached tokens: wherever a response is cut, and nothing else changes."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.openai.model_names import ServedNameRewriter
from fairlead_gateway.tenants.worker.tenant_policy import CachedTokensFilter, hide_cached_tokens

BODY = json.dumps(
    {
        "model": "engine-name",
        "text": 'say "cached_tokens": 7 and \\"cached_tokens\\": 8',
        "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 1234, "audio_tokens": 5}},
        "anthropic": {"cache_read_input_tokens": 3, "cache_creation_input_tokens": 4, "input_tokens": 2},
        "sglext": {"cached_tokens_details": {"device": 64, "host": 0}},
    }
).encode()


def test_counts_become_null_a_prompt_is_counted_whole_and_other_values_stay() -> None:
    before, after = json.loads(BODY), json.loads(hide_cached_tokens(BODY))
    assert after["text"] == before["text"]
    assert after["usage"] == {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": None, "audio_tokens": 5}}
    assert after["anthropic"] == {
        "cache_read_input_tokens": None,
        "cache_creation_input_tokens": None,
        "input_tokens": 9,
    }
    assert after["sglext"] == {"cached_tokens_details": None}


def test_counts_of_other_engines_are_hidden() -> None:
    timings = {"cache_n": 236, "prompt_n": 1, "prompt_ms": 30.5, "predicted_n": 35}
    reply = {"timings": timings, "tokens_cached": 40, "prompt_progress": {"total": 900, "cache": 640, "processed": 700}}
    reply |= {"usage": {"prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 8, "prompt_tokens": 72}}
    after = json.loads(hide_cached_tokens(json.dumps(reply).encode()))
    assert after["timings"] == {**timings, "cache_n": None, "prompt_n": None}
    assert (after["tokens_cached"], after["prompt_progress"]) == (None, None)
    assert after["usage"] == {"prompt_cache_hit_tokens": None, "prompt_cache_miss_tokens": None, "prompt_tokens": 72}
    assert hide_cached_tokens(b'{"timings":{"prompt_n":5}}') == b'{"timings":{"prompt_n":null}}'


def test_whole_events_do_not_wait_for_the_next_ones() -> None:
    rewriter = CachedTokensFilter()
    event = b'event: message_delta\ndata: {"usage":{"cache_read_input_tokens":7}}\n\n'
    shown = b'event: message_delta\ndata: {"usage":{"cache_read_input_tokens":null}}\n\n'
    for _ in range(3):
        assert rewriter.rewrite_chunks([event], False) == [shown]


@given(st.lists(st.integers(0, 3 * len(BODY)), max_size=8), st.integers(0, 2))
def test_chunks_hide_the_same_wherever_they_are_cut(cuts: list[int], repeated: int) -> None:
    data = BODY * (repeated + 1)
    places = sorted({0, len(data), *[cut for cut in cuts if cut < len(data)]})
    chunks = [data[start:end] for start, end in pairwise(places)]
    rewriter = CachedTokensFilter(ServedNameRewriter("engine-name", "shown"))
    sent = [
        part
        for index, chunk in enumerate(chunks)
        for part in rewriter.rewrite_chunks([chunk], index == len(chunks) - 1)
    ]
    assert b"".join(sent) == hide_cached_tokens(data).replace(b'"model": "engine-name"', b'"model": "shown"')


@pytest.mark.parametrize("text", [b"", b"{}", b'{"cached": 1}', b'{"cached_tokens": null}', b'{"x_cached_tokens": 1}'])
def test_bodies_without_such_counts_stay_as_they_are(text: bytes) -> None:
    assert hide_cached_tokens(text) == text

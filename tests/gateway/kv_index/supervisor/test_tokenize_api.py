"""Queries for the tokens of a prompt: what an engine may answer."""

import pytest

from fairlead_gateway.kv_index.supervisor.tokenize_api import (
    TOKENIZE_RESPONSE_BYTES,
    max_tokenize_response_bytes,
    parse_tokens,
)

LIMIT = TOKENIZE_RESPONSE_BYTES


@pytest.mark.parametrize("size", [1, 1_000, 100_000, 500_000])
def test_each_byte_of_a_prompt_may_be_a_token(size: int) -> None:
    response = b'{"count":1,"max_model_len":1,"tokens":[' + b", ".join([b"4294967295"] * size) + b"]}"
    assert len(response) <= max_tokenize_response_bytes(bytes(size), LIMIT)
    assert len(parse_tokens(response)) == size


def test_engine_cannot_answer_small_prompts_with_millions_of_tokens() -> None:
    assert max_tokenize_response_bytes(bytes(1_000), LIMIT) < 300_000
    assert max_tokenize_response_bytes(bytes(LIMIT), LIMIT) == LIMIT

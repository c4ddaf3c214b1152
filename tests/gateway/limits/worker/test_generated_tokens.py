"""The output of requests whose engine has reported none."""

from types import SimpleNamespace
from typing import Any

import pytest

from fairlead.limits import Limits
from fairlead_gateway.dialects.chat import CHAT
from fairlead_gateway.limits.worker.amounts import GeneratedTokens

LIMITS = Limits(disconnected_tokens_per_second=50)


def context(
    *,
    stream: bool,
    dispatched_at: float | None = 10.0,
    sequences: int = 1,
    events: int = 0,
    max_tokens: int | None = None,
    output: int | None = None,
    caller: str = "acme",
) -> Any:
    """Returns the parts of a chat that has ended."""
    head = SimpleNamespace(path="/v1/chat/completions")
    return SimpleNamespace(
        caller=caller,
        http_request=SimpleNamespace(head=head),
        request=SimpleNamespace(
            model_key="default/tiny",
            stream=stream,
            sequences=sequences,
            answers=sequences,
            max_tokens=max_tokens,
            passes_stream=False,
            runs_on=False,
            dialect=CHAT,
        ),
        result=SimpleNamespace(
            dispatched_at=dispatched_at,
            event_count=events,
            output_tokens=output,
            error=None,
            first_at=None,
            last_at=None,
        ),
    )


def test_each_event_of_a_stream_is_a_token_until_streams_have_shown_more() -> None:
    generated = GeneratedTokens(LIMITS, default_tokens=100)
    assert generated.estimate(context(stream=True, events=7), 99.0) == 7
    generated.learn(context(stream=True, events=10, output=4))  # as where a first and a last event hold none
    assert generated.estimate(context(stream=True, events=7), 99.0) == 7


def test_events_of_speculative_decoding_hold_as_many_tokens_as_earlier_ones() -> None:
    generated = GeneratedTokens(LIMITS, default_tokens=100)
    for events, output in ((10, 32), (30, 88)):
        generated.learn(context(stream=True, events=events, output=output))
    assert generated.estimate(context(stream=True, events=20), 99.0) == 60
    assert generated.of_events("default/other", "acme", 20) == 20


def test_a_stream_is_no_longer_than_it_may_be() -> None:
    generated = GeneratedTokens(LIMITS, default_tokens=100)
    generated.learn(context(stream=True, events=10, output=30))
    assert generated.estimate(context(stream=True, events=20, max_tokens=25, sequences=2), 99.0) == 50


def test_later_streams_weigh_more() -> None:
    generated = GeneratedTokens(LIMITS, default_tokens=100)
    for _ in range(100):
        generated.learn(context(stream=True, events=10_000, output=10_000))
    for _ in range(100):
        generated.learn(context(stream=True, events=10_000, output=30_000))
    assert generated.of_events("default/tiny", "acme", 100) >= 290


def test_what_is_learned_of_models_is_bounded() -> None:
    generated = GeneratedTokens(LIMITS, default_tokens=100)
    for number in range(3_000):
        stream = context(stream=True, events=1, output=2)
        stream.request.model_key = f"default/{number}"
        generated.learn(stream)
    for number in range(20_000):
        generated.learn(context(stream=True, events=1, output=2, caller=str(number)))
    assert len(generated._models) <= 1_024
    assert len(generated._callers) <= 16_384
    assert generated.of_events("default/tiny", "19999", 1) == generated.of_events("default/2999", "other", 1) == 2


def test_streams_of_one_caller_make_no_events_of_others_larger() -> None:
    """Reasoning that a client does not want is in no event: 20 events, and 9,000 tokens."""
    generated = GeneratedTokens(LIMITS, default_tokens=100)
    for _ in range(9):
        generated.learn(context(stream=True, events=20, output=9_000, caller="attacker"))
    generated.learn(context(stream=True, events=100, output=100))
    assert generated.estimate(context(stream=True, events=300), 99.0) == 300
    assert generated.estimate(context(stream=True, events=300, caller="new"), 99.0) <= 16 * 300
    assert generated.estimate(context(stream=True, events=20, caller="attacker"), 99.0) == 9_000


@pytest.mark.parametrize(("seconds", "sequences", "tokens"), [(0.0, 1, 0), (0.5, 1, 25), (0.5, 2, 50), (60.0, 1, 100)])
def test_another_response_follows_from_its_time_up_to_the_whole(seconds: float, sequences: int, tokens: int) -> None:
    request = context(stream=False, sequences=sequences)
    assert GeneratedTokens(LIMITS, default_tokens=100).estimate(request, 10.0 + seconds) == tokens


def test_a_request_that_was_never_sent_has_computed_nothing() -> None:
    assert GeneratedTokens(LIMITS, default_tokens=100).estimate(context(stream=False, dispatched_at=None), 99.0) == 0


@pytest.mark.parametrize("token_seconds", [0.005, 0.01, 0.08])
@pytest.mark.parametrize("sequences", [1, 4])
def test_another_response_is_as_long_as_streams_of_its_model_have_shown(token_seconds: float, sequences: int) -> None:
    generated = GeneratedTokens(LIMITS, default_tokens=10_000)
    tokens = 400
    for _ in range(60):
        stream = context(stream=True, events=100, output=tokens, sequences=sequences)
        stream.result.first_at = 10.0
        stream.result.last_at = 10.0 + token_seconds * (tokens - 1) / sequences
        generated.learn(stream)
    left = context(stream=False, dispatched_at=50.0, sequences=sequences)
    assert generated.estimate(left, 52.0) == pytest.approx(sequences * 2.0 / token_seconds, rel=0.01)

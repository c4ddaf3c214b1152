"""The use of requests whose engine has reported none."""

from types import SimpleNamespace
from typing import Any

import pytest

from fairlead_gateway.worker.quota.amounts import tokens_until_disconnect

RATE = 50
"""Tokens a second."""


def context(*, stream: bool, dispatched_at: float | None, sequences: int = 1, events: int = 0) -> Any:
    """Returns the parts of a chat that disconnected."""
    head = SimpleNamespace(path="/v1/chat/completions")
    return SimpleNamespace(
        http_request=SimpleNamespace(head=head),
        request=SimpleNamespace(stream=stream, sequences=sequences),
        result=SimpleNamespace(dispatched_at=dispatched_at, event_count=events),
    )


def test_a_stream_is_charged_by_its_events() -> None:
    assert tokens_until_disconnect(context(stream=True, dispatched_at=1.0, events=7), 100, 9.0, RATE) == 7


@pytest.mark.parametrize(("seconds", "sequences", "tokens"), [(0.0, 1, 0), (0.5, 1, 25), (0.5, 2, 50), (60.0, 1, 100)])
def test_another_response_is_charged_by_its_time_up_to_the_whole(seconds: float, sequences: int, tokens: int) -> None:
    request = context(stream=False, dispatched_at=10.0, sequences=sequences)
    assert tokens_until_disconnect(request, 100, 10.0 + seconds, RATE) == tokens


def test_a_request_that_was_never_sent_has_computed_nothing() -> None:
    assert tokens_until_disconnect(context(stream=False, dispatched_at=None), 100, 9.0, RATE) == 0

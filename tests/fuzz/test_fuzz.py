"""Inputs of each fuzz target with a fixed seed; ``make nightly`` tries ten million with another."""

from pathlib import Path
from typing import Final

import pytest
from fuzzing.campaign import campaign
from fuzzing.targets import TARGETS

INPUTS: Final = {
    "head": 1_000,
    "splice": 1_000,
    "policy": 1_000,
    "body_check": 250,
    "chunked": 250,
    "hops": 250,
    "address": 1_500,
    "publisher": 250,
    "sse": 500,
    "messages_stream": 500,
    "responses_stream": 500,
    "response_ids": 500,
    "volatile_text": 500,
    "engine": 250,
    "upstream": 250,
    "kv_events": 250,
}
_OUT: Final = Path(__file__).parents[2] / "out" / "fuzz"


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_a_property(name: str) -> None:
    """The message names the command that repeats a finding."""
    report = campaign(TARGETS[name], "ci", INPUTS[name], _OUT)
    texts = [f"{finding.where}\n  {finding.data!r}\n  {finding.replay}" for finding in report.findings]
    assert not texts, "\n".join(texts)
    assert report.inputs == INPUTS[name]
    assert report.kinds > len(TARGETS[name].seeds), "the inputs have become all alike"

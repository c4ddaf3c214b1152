"""The status page states what happens to requests of a model without a ready instance.

It counts sleeping instances separately.
"""

import json
import re
import shutil
import subprocess
from importlib.resources import files
from typing import Any

import pytest

SCRIPT = (files("fairlead_gateway.supervisor.management") / "static" / "page.js").read_text()
NODE = shutil.which("node")


def model_status(wakes: bool, *states: str) -> dict[str, Any]:
    """Returns the page's text for a model with instances in these states, computed by node."""
    assert NODE is not None
    return status_of([{"state": state} for state in states], wakes=wakes)


def status_of(instances: list[dict[str, Any]], lost: int = 0, *, wakes: bool = False) -> dict[str, Any]:
    model = {"wakes": wakes, "instances": instances, "lost": [{"id": f"gone-{number}"} for number in range(lost)]}
    return json.loads(_words("standingOf", model))  # type: ignore[no-any-return]


@pytest.mark.skipif(NODE is None, reason="no JavaScript engine here")
@pytest.mark.parametrize(
    ("wakes", "states", "state", "tone", "words"),
    [
        (False, [], "no instance ready", "bad", "Requests are answered 503 until one is ready."),
        (True, [], "idle", "none", "This model has no instance. The next request waits while one starts."),
        (
            True,
            ["Sleeping"],
            "idle, 1 asleep",
            "none",
            "1 instance: 1 sleeping. The next request waits while one wakes.",
        ),
        (True, ["Starting"], "no instance ready", "bad", "The next request waits while one starts."),
        (True, ["Ready", "Sleeping"], "1 ready, 1 asleep", "good", ""),
        (False, ["Ready", "Starting"], "1 of 2 ready", "warn", ""),
    ],
)
def test_a_model_that_wakes_is_idle_and_not_broken(
    wakes: bool, states: list[str], state: str, tone: str, words: str
) -> None:
    status = model_status(wakes, *states)
    assert (status["state"], status["tone"]) == (state, tone)
    assert status["words"].endswith(words)


@pytest.mark.skipif(NODE is None, reason="no JavaScript engine here")
@pytest.mark.parametrize(
    ("changes", "lost", "state", "tone"),
    [
        ({}, 0, "2 ready", "good"),
        ({"signals": {"age_seconds": 26.1}}, 0, "1 of 2 ready, 1 silent", "bad"),
        ({"signals": {"age_seconds": 3.0}}, 0, "2 ready", "good"),
        ({"waiting": 5, "answer_age_seconds": 40.0}, 0, "1 of 2 ready, 1 silent", "bad"),
        ({"waiting": 0, "answer_age_seconds": 40.0}, 0, "2 ready", "good"),
        ({"standing": "Ejected", "signals": {"age_seconds": 26.1}}, 0, "1 of 2 ready, 1 ejected", "bad"),
        ({"standing": "Probing"}, 0, "2 ready", "good"),
        ({}, 1, "2 of 3 ready, 1 lost", "bad"),
    ],
)
def test_a_hung_an_ejected_and_a_lost_engine_are_red(changes: dict[str, Any], lost: int, state: str, tone: str) -> None:
    status = status_of([{"state": "Ready", "standing": "Healthy"}, {"state": "Ready", **changes}], lost)
    assert (status["state"], status["tone"]) == (state, tone)


@pytest.mark.skipif(NODE is None, reason="no JavaScript engine here")
def test_latencies_over_their_target_have_a_colour() -> None:
    for p90, p99, target, tone in (
        (0.1, 0.2, 2.0, ""),
        (0.1, 14.7, 2.0, "warn"),
        (3.0, 14.7, 2.0, "bad"),
        (9, 9, None, ""),
    ):
        assert _words("toneOf", {"p90": p90, "p99": p99}, target) == tone


def _words(function: str, *values: object) -> str:
    """Returns what functions of the page say of values, computed by node."""
    assert NODE is not None
    names = dict.fromkeys(["share", "seconds", "long", "healthOf", "standingOf", function])
    parts = [re.search(rf"^function {name}\(.*?^}}", SCRIPT, re.DOTALL | re.MULTILINE) for name in names]
    constants = re.findall(r"^const (?:known|whole|times|TONES|SILENT_SECONDS) = .*$", SCRIPT, re.MULTILINE)
    sources = "\n".join([*constants, *(part[0] for part in parts if part is not None)])
    result = f"{function}({', '.join(map(json.dumps, values))})"
    shown = f"JSON.stringify({result})" if function == "standingOf" else result
    program = f"{sources}\nconsole.log({shown});"
    process = subprocess.run([NODE, "-e", program], capture_output=True, text=True, check=True, timeout=60)
    return process.stdout.strip()


@pytest.mark.skipif(NODE is None, reason="no JavaScript engine here")
def test_a_route_shows_the_shares_of_its_targets_and_its_fallbacks() -> None:
    assert _words("targetWords", {"chat/a": 9, "chat/b": 1}) == "chat/a 90\u00a0%, chat/b 10\u00a0%"
    assert _words("targetWords", {"chat/a": 0, "chat/b": 0}) == "chat/a 0\u00a0%, chat/b 0\u00a0%"
    assert _words("targetWords", {"chat/a": 1}) == "chat/a"
    fallbacks = [
        {"model": "chat/b", "when": ["NoCapacity", "Unavailable"], "after": None},
        {"model": "chat/c", "when": ["Refused"], "after": "chat/b"},
    ]
    assert (
        _words("fallbackWords", fallbacks) == "chat/b after NoCapacity or Unavailable; chat/c after Refused of chat/b"
    )


@pytest.mark.skipif(NODE is None, reason="no JavaScript engine here")
def test_a_route_shows_what_becomes_of_copies_for_its_shadow() -> None:
    shadow = {"model": "chat/b", "percent": 10}
    side = {"errors": 1, "ttft_mean_seconds": 0.21, "tpot_mean_seconds": None, "output_tokens_mean": 312.4}
    comparison = {
        "original": "chat/a",
        "outcomes": {"answered": 40, "failed": 3, "no-room": 5, "shed": 2},
        "compared": 42,
        "copies": side,
        "originals": {**side, "ttft_mean_seconds": 0.18, "output_tokens_mean": 208.0},
    }
    assert _words("shadowWords", None, {}) == ""
    assert _words("shadowWords", shadow, {}) == "chat/b, 10\u00a0% of conversations"
    assert _words("shadowWords", shadow, {"chat/b": {"shadows": [comparison]}}) == (
        "chat/b, 10\u00a0% of conversations; of chat/a: 40 answered, 3 failed, 7 without an answer; "
        "TTFT 210\u00a0ms, original 180\u00a0ms; answer tokens 312, original 208"
    )

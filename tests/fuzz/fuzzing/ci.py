"""A campaign as a test, with a fixed seed."""

from pathlib import Path

from fuzzing.campaign import campaign
from fuzzing.targets import TARGETS

_SEED = "ci"
_OUT = Path(__file__).parents[3] / "out" / "fuzz"


def holds(name: str, inputs: int) -> None:
    """Checks that no input breaks a property; the message names the command that repeats it."""
    report = campaign(TARGETS[name], _SEED, inputs, _OUT)
    words = [f"{one.where}\n  {one.data!r}\n  {one.replay}" for one in report.findings]
    assert not words, "\n".join(words)
    assert report.inputs == inputs
    assert report.kinds > len(TARGETS[name].seeds), "the inputs have become all alike"

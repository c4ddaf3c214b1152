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
    found = re.search(r"^function standingOf.*?^}", SCRIPT, re.DOTALL | re.MULTILINE)
    assert found is not None
    model = json.dumps({"wakes": wakes, "instances": [{"state": state} for state in states]})
    program = (
        "const times = (count, one, many) => `${count} ${count === 1 ? one : many}`;\n"
        f"{found[0]}\nconsole.log(JSON.stringify(standingOf({model})));"
    )
    said = subprocess.run([NODE, "-e", program], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(said.stdout)  # type: ignore[no-any-return]


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
    found = model_status(wakes, *states)
    assert (found["state"], found["tone"]) == (state, tone)
    assert found["words"].endswith(words)

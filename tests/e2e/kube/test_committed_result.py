"""The committed run of the story on a cluster is one in full, in which no stream was lost."""

import json
from pathlib import Path

RESULT = Path(__file__).parents[3] / "bench" / "results" / "e2e.json"
MOVES = {
    "replace engines",
    "replace gateways",
    "replace operator",
    "scale to six",
    "evict half",
    "scale to two",
    "upgrade fairlead",
}


def test_no_stream_was_lost_while_everything_moved() -> None:
    report = json.loads(RESULT.read_text())
    load = report["parts"]["under_load"]
    assert (report["full"], report["holds"]) == (True, True)
    assert (load["rate"], load["tokens"], load["failures"]) == (20.0, 200, [])
    assert load["outcomes"] == {"complete": load["streams"]}
    assert {step["step"] for step in load["steps"]} >= MOVES
    assert load["per_second"] >= 19.6
    assert report["parts"]["first_token"]["seconds"]["apply_to_first_token"] <= 30.0

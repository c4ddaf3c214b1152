"""Committed runs on a cluster: the story in full, and moved streams. No stream was lost."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[3] / "bench" / "results"
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
    report = json.loads((RESULTS / "e2e.json").read_text())
    load = report["parts"]["under_load"]
    assert (report["full"], report["holds"]) == (True, True)
    assert (load["rate"], load["tokens"], load["failures"]) == (20.0, 200, [])
    assert load["outcomes"] == {"complete": load["streams"]}
    assert {step["step"] for step in load["steps"]} >= MOVES
    assert load["per_second"] >= 19.6
    assert report["parts"]["first_token"]["seconds"]["apply_to_first_token"] <= 30.0


def test_no_stream_broke_when_nodes_and_the_control_plane_of_kind_failed() -> None:
    report = json.loads((RESULTS / "e2e-kind.json").read_text())
    assert report["holds"]
    assert len(report["parts"]) == 4
    for name, part in report["parts"].items():
        assert part["outcomes"] == {"complete": part["streams"]}, name
        assert part["streams"] >= 40, name


def test_fifty_streams_left_each_engine_of_a_drained_node_and_none_broke() -> None:
    report = json.loads((RESULTS / "rollouts.json").read_text())
    drained = report["parts"]["streams of a drained node"]
    assert report["holds"]
    assert min(drained["streams_on_its_engines"]) >= 50
    assert max(drained["seconds_of_its_engines"]) <= 10.0
    assert drained["outcomes"] == {"complete": drained["streams"]}

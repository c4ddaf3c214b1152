"""Recorded requests are read with their filler and their shared parts written out."""

import json
from pathlib import Path

from fairlead_testing.client_recordings import filler, read_client


def test_filler_has_the_length_and_the_start_of_a_longer_one() -> None:
    whole = filler(3, 500)
    assert len(whole) == 500
    assert all(filler(3, length) == whole[:length] for length in range(500))
    assert filler(4, 500) != whole


def test_shared_parts_and_filler_are_written_out(tmp_path: Path) -> None:
    tools = {"$shared": 0}
    sent = {"method": "POST", "target": "/v1/messages", "headers": [["a", "b"]]}
    requests = [
        {**sent, "body": {"tools": tools, "n": 1}},
        {**sent, "body": {"tools": tools, "text": {"$filler": [[3, 9], [4, 5]]}}},
    ]
    path = tmp_path / "client.json"
    path.write_text(json.dumps({"conversations": [[requests]], "shared": [[{"name": "read"}]]}))
    first, second = read_client(path)
    assert first.body == {"tools": [{"name": "read"}], "n": 1}
    assert second.body == {"tools": [{"name": "read"}], "text": filler(3, 9) + filler(4, 5)}
    assert json.loads(first.encode_body(n=3))["n"] == 3

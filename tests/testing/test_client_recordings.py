"""Recorded requests: what becomes filler, and what is read back."""

import json
from pathlib import Path

from fairlead_testing.client_recordings import FillerWriter, filler, read_client, share

SESSION = "01a226ed-4d4f-7872-97fd-2a74c2edba9b"


def test_filler_has_the_length_and_the_start_of_a_longer_one() -> None:
    whole = filler(3, 500)
    assert len(whole) == 500
    assert all(filler(3, length) == whole[:length] for length in range(500))
    assert filler(4, 500) != whole


def test_texts_with_a_common_start_keep_one() -> None:
    writer = FillerWriter({})
    start = "You are an agent. " * 9
    first, second, third = (
        writer.shorten(text)["$filler"] for text in (start + "One.", start + "Two.", "Unlike both.")
    )
    assert first == [[0, len(start) + 4]]
    assert second == [[0, len(start)], [1, 4]]
    assert third == [[2, 12]]
    assert writer.shorten(start + "One.") == {"$filler": first}


def test_names_stay_and_ids_and_paths_are_replaced_by_equal_ones() -> None:
    writer = FillerWriter({"/projects": "/home/xyz"})
    body = {
        "name": "exec_command",
        "id": SESSION,
        "user": json.dumps({"session": SESSION}),
        "cwd": "/projects/a",
        "n": 1,
    }
    found = writer.shorten(body)
    assert list(found) == list(body)
    assert (found["name"], found["cwd"], found["n"]) == ("exec_command", "/home/xyz/a", 1)
    assert found["id"] != SESSION
    assert len(found["id"]) == len(SESSION)
    assert json.loads(found["user"]) == {"session": found["id"]}


def test_billing_lines_stay() -> None:
    line = "x-anthropic-billing-header: cc_version=2.1.332.7f1; cc_entrypoint=sdk-cli;"
    assert FillerWriter({}).shorten(line) == line
    assert FillerWriter({}).shorten("You are a helpful agent.") == {"$filler": [[0, 24]]}


def test_a_recording_is_read_as_it_was_shared(tmp_path: Path) -> None:
    tools = [{"name": f"tool-{number}", "parameters": {"type": "object"}} for number in range(9)]
    request = {"method": "POST", "target": "/v1/messages", "headers": [["a", "b"]], "body": {"tools": tools, "n": 1}}
    conversations, shared = share([[[request, {**request, "body": {"tools": tools, "n": 2}}]]])
    assert len(shared) == 1
    path = tmp_path / "client.json"
    path.write_text(json.dumps({"client": "x", "conversations": conversations, "shared": shared}))
    first, second = read_client(path)
    assert (first.body, second.body) == ({"tools": tools, "n": 1}, {"tools": tools, "n": 2})
    assert json.loads(second.encode_body(n=3))["n"] == 3

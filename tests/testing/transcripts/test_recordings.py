"""The simulated engine does what the manifest claims of each recording of a real engine."""

import ast
import asyncio
from pathlib import Path

import pytest

from fairlead_testing.transcripts import recording, replay
from fairlead_testing.transcripts.recording import is_recording, read_recording
from fairlead_testing.transcripts.replay import ReplayResult, launch_engine, record_entries, replay_recordings

ROOT = Path(__file__).resolve().parents[3]
RECORDED = ROOT / "tests/recordings/vllm/http"
CLAIMED = recording.load_manifest()
RECORDINGS, MATCHED_LEAST, SCENARIOS = 105, 90, 10


@pytest.mark.parametrize("name", CLAIMED.engines)
def test_every_recording_is_matched_as_the_manifest_says(name: str) -> None:
    async def scenario() -> list[ReplayResult]:
        async with launch_engine(CLAIMED.engines[name]) as engine:
            return await replay_recordings(CLAIMED.entries_for(name), RECORDED, engine)

    results = asyncio.run(scenario())
    assert [result.entry.name for result in results if result.entry.hold == 0] == [
        entry.name for entry in CLAIMED.entries_for(name) if entry.hold == 0
    ]
    assert len(results) == len(CLAIMED.entries_for(name))
    assert {result.entry.name: result.differences for result in replay.broken_claims(results)} == {}


def test_the_manifest_names_every_file_and_no_other() -> None:
    files = {path.stem: is_recording(path.read_bytes()) for path in RECORDED.glob("*.txt")}
    assert {entry.name for entry in CLAIMED.entries} == {name for name, is_one in files.items() if is_one}
    assert {scenario.name for scenario in CLAIMED.scenarios} == {name for name, is_one in files.items() if not is_one}


def test_enough_recordings_are_matched() -> None:
    assert len(CLAIMED.entries) == RECORDINGS
    assert sum(entry.match != recording.EXCLUDED for entry in CLAIMED.entries) >= MATCHED_LEAST
    assert len(CLAIMED.scenarios) == SCENARIOS


def test_every_recording_that_is_not_matched_exactly_says_why() -> None:
    assert [entry.name for entry in CLAIMED.entries if entry.match != recording.EXACT and not entry.why] == []


def test_the_tests_that_cover_the_scenarios_exist() -> None:
    folder = Path(__file__).parent
    there = {
        f"{path.name}::{node.name}"
        for path in folder.glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {test for scenario in CLAIMED.scenarios for test in scenario.tests} <= there


def test_the_reference_page_is_the_one_that_the_manifest_gives() -> None:
    assert (ROOT / "docs/reference/transcripts.md").read_text("utf-8") == replay.render_page(CLAIMED)


def test_recording_an_engine_anew_gives_recordings_of_the_same_form(tmp_path: Path) -> None:
    name = "eight-k"
    entries = [entry for entry in CLAIMED.entries_for(name) if entry.name in ("00-version", "03-completion-stream")]

    async def scenario() -> dict[str, bytes]:
        async with launch_engine(CLAIMED.engines[name]) as engine:
            return await record_entries(entries, RECORDED, engine.authority)

    recorded = asyncio.run(scenario())
    assert list(recorded) == ["00-version.txt", "03-completion-stream.txt"]
    written = [tmp_path / file for file in recorded]
    for path in written:
        path.write_bytes(recorded[path.name])
        ours, theirs = read_recording(path), read_recording(RECORDED / path.name)
        assert (ours.request.method, ours.request.target) == (theirs.request.method, theirs.request.target)
        assert ours.request.body == theirs.request.body
        assert ours.response is not None
        assert theirs.response is not None
        assert ours.response.status == theirs.response.status
        assert ours.response.is_stream == theirs.response.is_stream
    assert read_recording(written[1]).response.events()[-1] == "[DONE]"  # type: ignore[union-attr]

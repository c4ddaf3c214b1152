"""The simulated engine does what the manifest claims of each recording of a real engine."""

from pathlib import Path

import pytest

from fairlead_testing.engines.disaggregated import engine_process
from fairlead_testing.transcripts.recording import EXACT, is_recording, load_manifest, read_recording
from fairlead_testing.transcripts.replay import record_entries, replay_recordings

ROOT = Path(__file__).resolve().parents[3]
RECORDED = ROOT / "tests/recordings/vllm/http"
CLAIMED = load_manifest()


@pytest.mark.parametrize("name", CLAIMED.engines)
async def test_every_recording_is_matched_as_the_manifest_says(name: str) -> None:
    entries = CLAIMED.entries_for(name)
    async with engine_process(*CLAIMED.engines[name]) as engine:
        differences = await replay_recordings(entries, RECORDED, engine)
    assert differences == {entry.name: [] for entry in entries}


def test_the_manifest_names_every_recording_and_tests_name_every_scenario() -> None:
    files = {path.stem: is_recording(path.read_bytes()) for path in RECORDED.glob("*.txt")}
    assert {entry.name for entry in CLAIMED.entries} == {name for name, is_one in files.items() if is_one}
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name, is_one in files.items() if not is_one and name not in tests] == []


def test_every_recording_that_is_not_matched_exactly_says_why() -> None:
    assert [entry.name for entry in CLAIMED.entries if entry.match != EXACT and not entry.why] == []


async def test_recording_an_engine_anew_gives_recordings_of_the_same_form(tmp_path: Path) -> None:
    name = "eight-k"
    entries = [entry for entry in CLAIMED.entries_for(name) if entry.name in ("00-version", "03-completion-stream")]
    async with engine_process(*CLAIMED.engines[name]) as engine:
        recorded = await record_entries(entries, RECORDED, engine.authority)
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

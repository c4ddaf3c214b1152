"""The age of records, in repositories of the tests."""

import json
import subprocess
from pathlib import Path

import pytest

from scripts.records import RecordAge, measured_code, note_on_old, record_age

ROOT = Path(__file__).parents[2]


class Repository:
    """A repository whose record `a.json` measures the folder `code`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._git("init", "--quiet")
        self.write("bench/records.yaml", "a.json: [code]\n")

    def write(self, path: str, text: str) -> None:
        """Writes a file, and commits it with its path as the subject."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", path)

    def record(self, *values: float) -> None:
        self.write("bench/results/a.json", json.dumps({"rows": [{"value": value} for value in values]}))

    def changes(self) -> list[str]:
        """Returns the subjects of the commits for which the record is old."""
        record_age.cache_clear()
        age = record_age("a.json", self.root)
        assert age is not None
        return [change.partition(" ")[2] for change in age.changes]

    def _git(self, *words: str) -> None:
        who = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        subprocess.run(["git", "-C", str(self.root), *who, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_a_record_is_old_once_its_code_has_changed(repository: Repository) -> None:
    repository.write("code/a.py", "1")
    repository.record(1.0, 2.0)
    repository.write("elsewhere/a.py", "1")
    repository.write("code/README.md", "1")
    assert repository.changes() == []
    repository.write("code/deep/down/b.pyx", "1")
    repository.write("code/a.py", "2")
    assert repository.changes() == ["code/a.py", "code/deep/down/b.pyx"]


def test_a_record_is_of_the_commit_with_its_newest_number(repository: Repository) -> None:
    repository.record(1.0, 2.0)
    repository.write("code/a.py", "1")
    repository.record(2.0)
    assert repository.changes() == ["code/a.py"], "it lost a row"
    repository.record(2.0, 3.0)
    assert repository.changes() == []


def test_the_age_is_unknown_where_git_does_not_know_the_record(repository: Repository) -> None:
    record_age.cache_clear()
    assert record_age("a.json", repository.root) is None


def test_every_record_names_code_that_exists() -> None:
    assert measured_code().keys() == {path.name for path in (ROOT / "bench" / "results").glob("*.json")}
    missing = [folder for folders in measured_code().values() for folder in folders if not (ROOT / folder).is_dir()]
    assert missing == []


def test_a_page_names_its_note_on_old(monkeypatch: pytest.MonkeyPatch) -> None:
    ages = {"routing.json": RecordAge("2026-11-21", ("1 a", "2 b")), "mix.json": RecordAge("2026-11-22", ())}
    monkeypatch.setattr("scripts.records.record_age", ages.get)
    quoted = "See `bench/results/routing.json`, [mix](../bench/results/mix.json) and `bench/results/e2e.json`."
    assert "    - `routing.json`, of 2026-11-21: 2 changes since\n" in note_on_old(quoted)
    assert "mix" not in note_on_old(quoted)
    assert note_on_old("See `routing.json`.") == ""

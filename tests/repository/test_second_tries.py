"""Tests that are red by chance are tried again, if they are few, and counted in a nightly run."""

import json
from collections import Counter
from pathlib import Path

import pytest

from scripts.reruns import nightly_rounds, second_try

PASSES_AT_SECOND_TRY = """
from pathlib import Path
def test_it():
    path = Path(__file__).with_name("was_here")
    was_here = path.exists()
    path.touch()
    assert was_here
"""


@pytest.fixture
def failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "lastfailed"
    monkeypatch.setattr(second_try, "FAILED", path)
    return path


@pytest.mark.parametrize("count", [0, second_try.MAX_TESTS + 1])
def test_no_failure_and_many_failures_have_no_second_try(failed: Path, count: int) -> None:
    failed.write_text(json.dumps({f"no_such_file_{number}.py": True for number in range(count)}))
    assert second_try.main() == 1


def test_a_test_that_passes_at_the_second_try_passes_and_is_named(
    failed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    test = tmp_path / "test_flaky.py"
    test.write_text(PASSES_AT_SECOND_TRY)
    failed.write_text(json.dumps({f"{test}::test_it": True}))
    assert (second_try.main(), second_try.main()) == (1, 0)
    assert f"once more, since it may have been by chance:\n  {test}::test_it" in capfd.readouterr().out


def test_what_is_red_by_chance_more_often_than_known_is_an_excess() -> None:
    flaky = Counter({"a": 2, "b": 1, "c": 1})
    assert nightly_rounds.excesses(flaky, {"a": 1, "b": 1}) == ["a: 2, known 1", "c: 1, known 0"]


def test_no_test_is_known_to_be_red_by_chance_that_does_not_exist() -> None:
    known = json.loads(nightly_rounds.KNOWN.read_text())
    assert [name for name in known if not (nightly_rounds.ROOT / name.partition("::")[0]).exists()] == []

"""The run directory of a stack, and its lookup by other commands."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.errors import Unavailable
from fairlead_cli.exit_codes import StackUnreachable
from fairlead_cli.local.run_directory import (
    RunningStack,
    make_run_directory,
    newest_stack,
    process_start,
    running_stacks,
    write_stack_file,
)


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def stack(started: float = 1.0) -> RunningStack:
    return RunningStack(os.getpid(), "http://127.0.0.1:8000", "http://127.0.0.1:8001", started, {"default/a": 8})


def test_run_directory_is_private(runtime: Path) -> None:
    directory = make_run_directory()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(directory.parent.stat().st_mode) == 0o700
    assert directory.parent.parent == runtime


def test_stack_is_found_once_its_file_is_written() -> None:
    directory = make_run_directory()
    assert running_stacks() == []
    write_stack_file(directory, stack())
    assert newest_stack() == stack()


def test_newest_stack_comes_first() -> None:
    for started in (1.0, 3.0, 2.0):
        write_stack_file(make_run_directory(), stack(started))
    assert [found_stack.started for found_stack in running_stacks()] == [3.0, 2.0, 1.0]


def test_missing_stack_error_has_a_hint() -> None:
    with pytest.raises(StackUnreachable, match="fairlead up"):
        newest_stack()


def test_directory_of_a_dead_stack_is_ignored_and_removed(runtime: Path) -> None:
    dead = runtime / "fairlead" / "up-999999999-x"
    dead.mkdir(parents=True, mode=0o700)
    (runtime / "fairlead").chmod(0o700)
    write_stack_file(dead, stack())
    assert running_stacks() == []
    make_run_directory()
    assert not dead.exists()


def test_process_with_the_reused_pid_of_a_dead_stack_is_not_taken_for_it() -> None:
    directory = make_run_directory()
    write_stack_file(directory, replace(stack(), process_start=f"{process_start(os.getpid())}0"))
    assert running_stacks() == []
    make_run_directory()
    assert not directory.exists()


def test_stack_is_found_by_the_pid_and_start_of_its_process() -> None:
    started = process_start(os.getpid())
    write_stack_file(make_run_directory(), replace(stack(), process_start=started))
    assert started
    assert newest_stack().process_start == started
    assert process_start(999_999_999) == ""


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pid": 1}', '{"engines": 3}'])
def test_unreadable_stack_file_is_skipped(text: str) -> None:
    (make_run_directory() / "stack.json").write_text(text)
    assert running_stacks() == []


def test_directory_writable_by_others_is_refused(runtime: Path) -> None:
    (runtime / "fairlead").mkdir()
    (runtime / "fairlead").chmod(0o777)
    with pytest.raises(Unavailable, match="only this user"):
        make_run_directory()


def test_temporary_directory_is_the_fallback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert make_run_directory().parent == tmp_path / f"fairlead-{os.getuid()}"

"""Files and folders of a command: pipes and devices do not stop it."""

import os
from pathlib import Path

import pytest

from fairlead.limits import Limits
from fairlead.manifests.files import read_texts, unread_folders
from fairlead_testing.cli.command_line import run_command_line

REASON = "cannot be read: it is no regular file"


def test_pipe_without_a_writer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\n")
    os.mkfifo(tmp_path / "b.yaml")
    for path in (tmp_path, tmp_path / "b.yaml"):
        texts, problems = read_texts([path], limits=Limits())
        assert [problem.message for problem in problems] == [REASON]
        assert texts == []
    for command in ("lint", "convert"):
        done = run_command_line(command, str(tmp_path))
        assert done.returncode == 1
        assert REASON in done.stdout + done.stderr


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/"])
def test_device_and_link_to_it_are_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to(path)
    if path != "/":
        assert [text.message for text in read_texts([path], limits=Limits())[1]] == [REASON]
    (problem,) = read_texts([tmp_path], limits=Limits())[1]
    assert problem.message == REASON


def test_link_to_a_file_and_stream_of_a_shell_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a: 1\n")
    (tmp_path / "a.yaml").symlink_to(tmp_path / "a")
    assert read_texts([tmp_path], limits=Limits())[0] == [(str(tmp_path / "a.yaml"), "a: 1\n")]
    reading, writing = os.pipe()
    os.write(writing, b"b: 2\n")
    os.close(writing)
    assert read_texts([f"/dev/fd/{reading}"], limits=Limits())[0] == [(f"/dev/fd/{reading}", "b: 2\n")]
    os.close(reading)


def test_folders_in_a_folder_are_named_as_not_read(tmp_path: Path) -> None:
    (tmp_path / "team" / "deep").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "team" / "deep" / "x.yml").write_text("kind: x")
    [found] = unread_folders([tmp_path, "-", tmp_path / "team" / "deep"])
    assert (found.field, found.message) == ("(folder)", "not read: the folders team in it")

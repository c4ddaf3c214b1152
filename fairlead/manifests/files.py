"""Reads the files and folders that a command names."""

import errno
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

from fairlead.errors import FileProblem, ManifestError
from fairlead.limits import Limits
from fairlead.manifests.yaml_nodes import decode_file

STDIN_PATH: Final = "-"
_SHELL_STREAMS: Final = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
"""Paths of streams that a shell has opened for a command, such as those of `<(…)`."""


def read_texts(
    paths: Sequence[str | Path], *, limits: Limits, stdin: BinaryIO | None = None
) -> tuple[list[tuple[str, str]], list[FileProblem]]:
    """Returns (file, text) of every readable file, and the problems of the others."""
    texts: list[tuple[str, str]] = []
    problems: list[FileProblem] = []
    for path in paths:
        try:
            texts += [(file, read_text(file, limits=limits, stdin=stdin)) for file in expand_path(path)]
        except ManifestError as error:
            problems += error.problems
    return texts, problems


def expand_path(path: str | Path) -> list[str]:
    """Returns the YAML files of a folder in order of name; for anything else, the path itself.

    Raises ManifestError for a folder without such files.
    """
    if str(path) == STDIN_PATH or not Path(path).is_dir():
        return [str(path)]
    files = sorted(str(file) for file in Path(path).iterdir() if file.suffix in (".yaml", ".yml"))
    if not files:
        problem = FileProblem(str(path), 1, "(folder)", "the folder has no .yaml or .yml file", "name a file")
        raise ManifestError((problem,))
    return files


def unread_folders(paths: Sequence[str | Path]) -> list[FileProblem]:
    """Returns a finding for each given folder that has YAML files in folders of its own."""
    found = []
    for path in paths:
        if str(path) == STDIN_PATH or not Path(path).is_dir():
            continue
        inner = sorted(one.name for one in Path(path).iterdir() if one.is_dir() and any(one.rglob("*.y*ml")))
        if inner:
            message = f"not read: the folders {', '.join(inner)} in it"
            found.append(FileProblem(str(path), 1, "(folder)", message, "name them, too"))
    return found


def read_text(file: str, *, limits: Limits, stdin: BinaryIO | None = None) -> str:
    """Returns the text of a file or of standard input. Raises ManifestError."""
    try:
        if file == STDIN_PATH:
            raw = (stdin or sys.stdin.buffer).read(limits.fleet_file_bytes + 1)
        else:
            raw = _read_regular(file, limits.fleet_file_bytes + 1)
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise ManifestError((FileProblem(file, 1, "(file)", message, "check the path and its permissions"),)) from error
    return decode_file(raw, file=file, limits=limits)


def _read_regular(file: str, max_bytes: int) -> bytes:
    """Returns the beginning of a file. Raises OSError for pipes and devices.

    Why: the first read of a pipe without a writer waits for ever, and some devices have no end.
    """
    is_stream = file.startswith(_SHELL_STREAMS)
    descriptor = os.open(file, os.O_RDONLY | (0 if is_stream else os.O_NONBLOCK))
    if not is_stream and not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file")
    with os.fdopen(descriptor, "rb") as opened:
        return opened.read(max_bytes)

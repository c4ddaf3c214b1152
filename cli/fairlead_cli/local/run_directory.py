"""Where a running stack keeps its files, and how ``chat`` and ``status`` find it.

``$XDG_RUNTIME_DIR/fairlead`` or ``<temp>/fairlead-<uid>``, ours and closed to others, holds one directory per stack:
``up-<pid>-<random>/`` with the fleet file, Redis' socket and ``stack.json``. The guard removes it, whatever ends the stack.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from fairlead.errors import Unavailable
from fairlead_cli.errors import StackUnreachable

STATE_FILE = "stack.json"


@dataclass(frozen=True, slots=True)
class RunningStack:
    """What others need to know of a running stack.

    ``engines`` says how many each model should have; those that an autoscaler sizes are not in it. ``simulated``: no engine of it is
    a real one. ``redis`` is the URL of its Redis, and ``hash_secret`` what keys its hashes: the directory is closed to other users.
    ``autoscaler`` is the URL of its autoscaler, empty where nothing is scaled.
    """

    pid: int
    url: str
    manage: str
    started: float
    engines: Mapping[str, int] = field(default_factory=dict)
    fleet_file: str = ""
    simulated: bool = False
    redis: str = ""
    hash_secret: str = ""
    autoscaler: str = ""


def base_directory() -> Path:
    """The user's directory for run directories; created closed. Raises Unavailable when it belongs to somebody else."""
    base = _base_path()
    base.mkdir(mode=0o700, exist_ok=True)
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise Unavailable(
            f"{base} is not a directory that only this user can write to",
            hint="remove it, or set XDG_RUNTIME_DIR to a directory of your own",
        )
    return base


def _base_path() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime) / "fairlead"
    return Path(tempfile.gettempdir()) / f"fairlead-{os.getuid()}"


def make_run_directory() -> Path:
    """A fresh directory for this process's stack; what long-dead stacks left behind goes."""
    base = base_directory()
    for old in base.glob("up-*-*"):
        if not _is_alive(old):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"up-{os.getpid()}-", dir=base))


def write_stack_file(directory: Path, stack: RunningStack) -> None:
    """Tell others of this stack, in one atomic step."""
    temporary = directory / f".{STATE_FILE}.new"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(stack)))
    temporary.replace(directory / STATE_FILE)


def running_stacks() -> list[RunningStack]:
    """Every living stack of this user, the newest first. Looking creates nothing."""
    if not os.path.lexists(_base_path()):
        return []
    stacks = []
    for file in base_directory().glob(f"up-*-*/{STATE_FILE}"):
        try:
            stack = msgspec.json.decode(file.read_bytes(), type=RunningStack)
        except (OSError, ValueError):
            continue  # being written by another release, or gone between listing and reading
        if _is_alive(file.parent):
            stacks.append(stack)
    return sorted(stacks, key=lambda stack: stack.started, reverse=True)


def newest_stack(flag: str = "--url") -> RunningStack:
    """The stack to talk to when ``flag`` names none. Raises NoStack."""
    stacks = running_stacks()
    if not stacks:
        raise StackUnreachable(
            "no running stack was found", hint=f"start one with `fairlead up`, or name one with {flag}"
        )
    return stacks[0]


def _is_alive(directory: Path) -> bool:
    try:
        pid = int(directory.name.split("-")[1])
        os.kill(pid, 0)
    except (ValueError, IndexError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True

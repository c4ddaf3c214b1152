"""The run directory of a stack, and the lookup of running stacks by other commands.

``$XDG_RUNTIME_DIR/fairlead`` or ``<temp>/fairlead-<uid>``, private to the user, has one directory
for each stack: ``up-<pid>-<random>/`` with the fleet file, Redis' socket and ``stack.json``. The
reaper removes it, however the stack ends. If both are killed, the directory stays, and another
process may get the pid. So the file also has the time at which the stack's process started.
"""

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from fairlead.errors import Unavailable
from fairlead_cli.addresses import service_url
from fairlead_cli.exit_codes import StackUnreachable

STATE_FILE = "stack.json"


@dataclass(frozen=True, slots=True)
class RunningStack:
    """The facts about a running stack that other commands need.

    engines: expected instances by model; models that an autoscaler scales are absent.

    simulated: no engine is real.

    hash_secret: key of the prefix hashes; the directory is private to the user.

    autoscaler: its URL, empty when nothing is scaled.

    tenant_files: files of ModelTenants that its gateway follows.

    process_start: when the process started, see ``process_start``; empty where that is unknown.
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
    tenant_files: tuple[str, ...] = ()
    process_start: str = ""


def base_directory() -> Path:
    """Returns the user's directory for run directories; creates it private. Raises Unavailable when
    others may write to it.
    """
    base = _base_path()
    base.mkdir(mode=0o700, exist_ok=True)
    status = base.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
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
    """Returns a new directory for this process's stack, and removes those of stacks that have
    ended.
    """
    base = base_directory()
    for directory in base.glob("up-*-*"):
        if not _is_alive(directory, _read_stack(directory)):
            shutil.rmtree(directory, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"up-{os.getpid()}-", dir=base))


def write_stack_file(directory: Path, stack: RunningStack) -> None:
    """Publishes a running stack in one atomic write."""
    temporary = directory / f".{STATE_FILE}.new"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(stack)))
    temporary.replace(directory / STATE_FILE)


def stacks_at(manage: str | None) -> list[RunningStack]:
    url = None if manage is None else service_url(manage, flag="--manage")
    return [stack for stack in running_stacks() if url in (None, stack.manage)]


def running_stacks() -> list[RunningStack]:
    """Returns every running stack of this user, the newest first. Creates nothing."""
    if not os.path.lexists(_base_path()):
        return []
    stacks = []
    for file in base_directory().glob(f"up-*-*/{STATE_FILE}"):
        stack = _read_stack(file.parent)
        if stack is not None and _is_alive(file.parent, stack):
            stacks.append(stack)
    return sorted(stacks, key=lambda stack: stack.started, reverse=True)


def newest_stack(flag: str = "--url") -> RunningStack:
    """Returns the newest stack. Raises StackUnreachable, which names ``flag``, when none runs."""
    stacks = running_stacks()
    if not stacks:
        raise StackUnreachable(
            "no running stack was found", hint=f"start one with `fairlead up`, or name one with {flag}"
        )
    return stacks[0]


def process_start(pid: int) -> str:
    """Returns the time at which a process started, from /proc or from ``ps``; empty if unknown.

    The text is in ticks since the machine's start, or a date. It never changes for one process.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return ""
    try:
        found = subprocess.run(
            ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False, env={"LC_ALL": "C"}
        )
    except OSError:
        return ""
    return found.stdout.strip()


def _read_stack(directory: Path) -> RunningStack | None:
    """Returns the stack that a directory describes; None without a file of this release."""
    try:
        return msgspec.json.decode((directory / STATE_FILE).read_bytes(), type=RunningStack)
    except (OSError, ValueError):
        return None  # being written by another release, or gone between listing and reading


def _is_alive(directory: Path, stack: RunningStack | None) -> bool:
    """Returns whether the process of a directory runs, and is the one that started the stack."""
    try:
        pid = int(directory.name.split("-")[1])
        os.kill(pid, 0)
    except (ValueError, IndexError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    started = "" if stack is None else stack.process_start
    return not started or process_start(pid) == started

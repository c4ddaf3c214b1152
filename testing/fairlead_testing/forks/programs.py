"""The programs of the product that a fork server can run, and the modules that each imports."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SERVER_MODULE = "fairlead_testing.forks"
"""A word of the command line of each fork server."""
_CHILD_EXEC = ("cli", "fairlead_cli", "local", "processes", "child_exec.py")
_STACK_VERBS = frozenset({"up", "demo", "replay"})
_INTERPRETER_PREFIXES = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_")
_EMULATED = frozenset({"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"})


@dataclass(frozen=True, slots=True)
class Program:
    """A program that runs as `python -m NAME`.

    imports: modules that the server imports before its first fork.
    children: programs that this program starts itself.
    has_copy: it may run from the compiled copy of the data plane.
    """

    imports: tuple[str, ...]
    children: tuple[str, ...] = ()
    has_copy: bool = True


_GATEWAY = "fairlead_gateway.supervisor"
_CLI = "fairlead_cli"
PROGRAMS: Mapping[str, Program] = {
    "fairlead_sim": Program(("fairlead_sim.__main__", "uvloop")),
    "fairlead_gateway": Program(
        (
            *("fairlead_gateway.__main__", f"{_GATEWAY}.supervisor", f"{_GATEWAY}.decision_stream"),
            *(f"{_GATEWAY}.file_parsing.client", f"{_GATEWAY}.peers.peer_sync", f"{_GATEWAY}.usage.usage_service"),
            *(f"{_GATEWAY}.management.api", f"{_GATEWAY}.tenancy.access_service"),
        ),
        ("fairlead_gateway.worker.__main__", f"{_GATEWAY}.file_parsing.process"),
    ),
    "fairlead_gateway.worker.__main__": Program(("fairlead_gateway.worker.__main__", "uvloop")),
    f"{_GATEWAY}.file_parsing.process": Program((f"{_GATEWAY}.file_parsing.process",)),
    "fairlead_kvstore": Program(("fairlead_kvstore.__main__", "fairlead_kvstore.indexer.cli", "uvloop")),
    "fairlead_autoscaler": Program(("fairlead_autoscaler.__main__", "uvloop")),
    "fairlead_operator": Program(("fairlead_operator.__main__", "fairlead_operator.manager", "uvloop")),
    "fairlead_cli": Program(
        (
            *(f"{_CLI}.__main__", f"{_CLI}.app", f"{_CLI}.cluster.status.command"),
            *(f"{_CLI}.local.stack.launch", f"{_CLI}.local.processes.child_exec"),
            *("fairlead.kube.client", "cyclopts.help", "rich.markdown"),
        ),
        ("fairlead_cli", "fairlead_sim", "fairlead_gateway", "fairlead_kvstore", "fairlead_autoscaler"),
    ),
}


def program_command(argv: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the name of the program and its arguments; None if this command is no known program.

    Knows `python -m NAME …`, also behind the first program of a child of `fairlead up`.
    """
    words = tuple(argv)
    if is_child_exec(words):
        words = words[6:]
    if len(words) < 3 or words[:2] != (sys.executable, "-m") or words[2] not in PROGRAMS:
        return None
    return words[2:]


def is_child_exec(argv: Sequence[str]) -> bool:
    """Returns True if the command runs another through `child_exec.py`."""
    return (
        tuple(argv[:3]) == (sys.executable, "-I", "-S")
        and len(argv) > 6
        and Path(argv[3]).parts[-len(_CHILD_EXEC) :] == _CHILD_EXEC
    )


def needed_imports(command: Sequence[str]) -> list[str]:
    """Returns the modules of a program, and of those that it starts."""
    found: dict[str, None] = {}
    seen: set[str] = set()
    waiting = [command[0]]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            found.update(dict.fromkeys(PROGRAMS[name].imports))
            if name != command[0] or starts_programs(command):
                waiting += PROGRAMS[name].children
    return list(found)


def starts_programs(command: Sequence[str]) -> bool:
    """Returns True if the program starts other programs."""
    return bool(PROGRAMS[command[0]].children) and (
        command[0] != "fairlead_cli" or bool(_STACK_VERBS.intersection(command[1:2]))
    )


def interpreter_variables(environ: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Returns the variables that an interpreter reads when it starts, so that no fork can."""
    names = {os.fsencode(name) for name in _EMULATED}
    prefixes = tuple(map(os.fsencode, _INTERPRETER_PREFIXES))
    return {name: value for name, value in environ.items() if name.startswith(prefixes) and name not in names}


def copy_variables(environ: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Returns the variables by which a program finds the compiled copy of the data plane, if there
    is one.

    Why: gateways and indexers give them to their processes. A fork server that has them can fork
    these, too.
    """
    names = (b"FAIRLEAD_COMPILED", b"FAIRLEAD_CACHE", b"HOME", b"PYTHONPATH", b"PYTHONSAFEPATH")
    return _copy_variables(tuple((name, environ[name]) for name in names if name in environ))


@cache
def _copy_variables(given: tuple[tuple[bytes, bytes], ...]) -> dict[bytes, bytes]:
    """Why cached: the copy is named by a digest of all sources."""
    from fairlead.runtime.compiled_build import worker_environment

    environ = {os.fsdecode(name): os.fsdecode(value) for name, value in given}
    return {
        os.fsencode(name): os.fsencode(value)
        for name, value in worker_environment(environ).items()
        if environ.get(name) != value
    }

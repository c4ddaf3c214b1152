"""Helpers for processes in tests: life, descendants, descriptors and ports.

Ports for servers that cannot take port 0, or that must come back on the same port.

They are below the range of ephemeral ports, from which the kernel takes those of outgoing
connections: between choice and use, no connection of another test can take them. Each process that
runs tests has its own share, and goes through it in a random order. So a port is not chosen twice
before its server listens.
"""

import asyncio
import contextlib
import itertools
import os
import random
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import BinaryIO

from fairlead_testing.forks.process import SERVER_MODULE

PATIENCE_SECONDS = 120.0

PROCESS_VARIABLE = "PYTEST_PROCESS"
"""The environment of each process that runs tests: its number."""
_SHARES = 16
_SPAN = 16_384


@contextlib.asynccontextmanager
async def ready_process(
    module: str,
    *arguments: str,
    ready: str,
    environ: Mapping[str, str] | None = None,
    stderr: int | BinaryIO | None = None,
) -> AsyncIterator[tuple[asyncio.subprocess.Process, re.Match[str]]]:
    """Runs `python -m MODULE`, and kills it at the end of the block.

    ready: a pattern of its first line, for which this waits.
    environ: None: that of this process.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments), stdout=asyncio.subprocess.PIPE, stderr=stderr, env=environ
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), PATIENCE_SECONDS)).decode()
        found = re.match(ready, line)
        assert found, line
        yield process, found
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def start_ready(
    module: str, *arguments: str, log: Path, environ: Mapping[str, str] | None = None
) -> "tuple[subprocess.Popen[str], str]":
    """Starts a module with its errors in a file. Returns the process and its line that begins with
    `ready`. Raises RuntimeError with the end of the file where that does not come.
    """
    command = [sys.executable, "-m", module, *arguments]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=out, stdin=subprocess.DEVNULL, text=True, env=environ
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("ready"):
        process.kill()
        raise RuntimeError(f"{module} did not start: {line}{log.read_text()[-2_000:]}")
    return process, line


def cpu_seconds(pid: int) -> float:
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def memory_bytes(pid: int, field: str = "VmRSS") -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024


def is_alive(pid: int) -> bool:
    """Returns True if the process runs. A zombie has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return _state_and_parent(pid)[0] != "Z"


def descendants(pid: int) -> set[int]:
    """Returns every living descendant of `pid` (from /proc, Linux), without fork servers."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            state, parent = _state_and_parent(int(entry.name))
            if state not in ("Z", "gone"):
                parents[int(entry.name)] = parent
    found: set[int] = set()
    fresh = {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return {pid for pid in found if SERVER_MODULE not in command_line(pid)}


def command_line(pid: int) -> list[str]:
    """Returns the words of a process's command line; none if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def find_process(pid: int, module: str) -> int:
    """Returns the descendant of `pid` that runs a Python module. Raises AssertionError if there is
    none.
    """
    for descendant in descendants(pid):
        if module.encode() in Path(f"/proc/{descendant}/cmdline").read_bytes().split(b"\0"):
            return descendant
    raise AssertionError(f"no {module} runs")


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    """Returns True if the port accepts connections."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Leaves this process without a free descriptor until the block ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[0] + 1, hard))
    try:
        while True:
            try:
                fillers.append(os.dup(0))
            except OSError:
                break
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)


def block_until(condition: Callable[[], bool], what: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Polls until `condition` holds. Raises AssertionError with `what` after `patience_seconds`."""
    end = time.monotonic() + patience_seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {patience_seconds:g} s in vain: {what}")
        time.sleep(0.02)


def _state_and_parent(pid: int) -> tuple[str, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ("gone" if Path("/proc/self").exists() else "?"), 0
    return fields[0], int(fields[1])


def unused_port() -> int:
    return next(port for port in _own_share() if _is_free(port))


def unused_ports(count: int) -> list[int]:
    return [unused_port() for _ in range(count)]


@cache
def _own_share() -> Iterator[int]:
    """Returns the ports of this process, again and again, in the same random order."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    process = int(os.environ.get(PROCESS_VARIABLE, "0"))
    share = list(range(max(1_024, lowest - _SPAN) + process % _SHARES, lowest, _SHARES))
    random.SystemRandom().shuffle(share)  # tests seed the shared generator
    return itertools.cycle(share)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

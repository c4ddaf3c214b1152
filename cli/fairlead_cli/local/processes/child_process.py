"""One child process: start, output lines, last lines for errors, and the end of its whole process
group.

A child leads its own session, so that the terminal's Ctrl-C does not reach it: only the supervisor
ends it.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fairlead_cli.local.processes.reaper import Reaper

_CHILD_EXEC = Path(__file__).with_name("child_exec.py")
MAX_LINE_BYTES = 16_384
MAX_LAST_LINES = 40


@dataclass(frozen=True, slots=True)
class ProcessCommand:
    """Command line and environment of a child. ``environment`` extends that of the supervisor; None
    removes a variable.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str | None] = field(default_factory=dict)


class ChildProcess:
    """A running process. ``exited`` has the exit code once it and its whole process group have
    ended.
    """

    def __init__(self, name: str, reaper: Reaper, log: Path | None = None) -> None:
        self.name = name
        self.pid = 0
        self.last_lines: deque[str] = deque(maxlen=MAX_LAST_LINES)
        self.ready_lines: list[str] = []
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._ready_received = asyncio.Event()
        self._reaper = reaper
        self._log = log
        self._partial_line = b""
        self._exit_task: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, name: str, command: ProcessCommand, reaper: Reaper, log: Path | None = None) -> "ChildProcess":
        """Starts ``command`` through ``child_exec``. A program that cannot run has exit code 127
        and a last line.
        """
        child = cls(name, reaper, log)
        process = _spawn(command, reaper)
        child.pid = process.pid
        reaper.add(process.pid)
        await child._watch(process)
        return child

    async def wait_ready(self, count: int = 1) -> list[str]:
        """Waits for ``count`` lines that begin with ``ready``; returns the rest of each."""
        while len(self.ready_lines) < count:
            self._ready_received.clear()
            await self._ready_received.wait()
        return self.ready_lines[:count]

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the whole process group, unless the group has ended."""
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    async def stop(self, grace_seconds: float) -> int:
        """Sends SIGTERM, and SIGKILL after ``grace_seconds``; returns the exit code."""
        self.send_signal(signal.SIGTERM)
        await asyncio.wait({self.exited}, timeout=grace_seconds)
        self.send_signal(signal.SIGKILL)
        return await asyncio.shield(self.exited)

    async def _watch(self, process: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        assert process.stdout is not None
        output = _OutputProtocol(self._on_output)
        transport, _ = await loop.connect_read_pipe(lambda: output, process.stdout)
        exit_code: asyncio.Future[int] = loop.create_future()

        def wait() -> None:
            code = process.wait()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(exit_code.set_result, code)

        threading.Thread(target=wait, name=f"wait-{self.name}", daemon=True).start()
        self._exit_task = loop.create_task(self._finish(exit_code, output.closed, transport))

    async def _finish(
        self, exit_code: asyncio.Future[int], output_closed: asyncio.Future[None], transport: asyncio.BaseTransport
    ) -> None:
        code = await exit_code
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # processes that are left in its group
        self._reaper.remove(self.pid)
        await asyncio.wait({output_closed}, timeout=1.0)  # its last lines, unless another process holds the pipe open
        transport.close()
        if self._partial_line:
            self._on_output(b"\n")
        self.exited.set_result(code)

    def _on_output(self, data: bytes) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError), self._log.open("ab") as file:
                file.write(data)
        *lines, self._partial_line = (self._partial_line + data).split(b"\n")
        self._partial_line = self._partial_line[-MAX_LINE_BYTES:]
        for line in lines:
            text = line[:MAX_LINE_BYTES].decode(errors="replace").rstrip()
            if not text:
                continue
            self.last_lines.append(text)
            if text.startswith("ready ") or text == "ready":
                self.ready_lines.append(text.removeprefix("ready").strip())
                self._ready_received.set()


def _spawn(command: ProcessCommand, reaper: Reaper) -> subprocess.Popen[bytes]:
    """Starts the process from the main thread.

    Why: the kernel's parent-death signal depends on the thread that forked, so a thread pool would
    not do.
    """
    environment = dict(os.environ)
    for name, value in command.environment.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    child_exec = (sys.executable, "-I", "-S", str(_CHILD_EXEC), str(reaper.fd), str(os.getpid()))
    return subprocess.Popen(
        (*child_exec, *command.argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        start_new_session=True,
        pass_fds=(reaper.fd,),
        env=environment,
    )


class _OutputProtocol(asyncio.Protocol):
    def __init__(self, on_output: Callable[[bytes], None]) -> None:
        self._on_output = on_output
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._on_output(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

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
KEPT_LINES = 40


@dataclass(frozen=True, slots=True)
class ProcessCommand:
    """Command line and environment. ``environment`` extends ours; None removes a variable."""

    argv: tuple[str, ...]
    environment: Mapping[str, str | None] = field(default_factory=dict)


class ChildProcess:
    """A running process. ``exited`` has the exit code once it and its whole process group have
    ended.
    """

    def __init__(self, name: str, guard: Reaper, log: Path | None = None) -> None:
        self.name = name
        self.pid = 0
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.ready_lines: list[str] = []
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._heard = asyncio.Event()
        self._guard = guard
        self._log = log
        self._rest = b""
        self._settling: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, name: str, command: ProcessCommand, guard: Reaper, log: Path | None = None) -> "ChildProcess":
        """Starts ``command`` through ``child_exec``. A program that cannot run has exit code 127
        and a last line.
        """
        child = cls(name, guard, log)
        process = _spawn(command, guard)
        child.pid = process.pid
        guard.add(process.pid)
        await child._watch(process)
        return child

    async def wait_ready(self, count: int = 1) -> list[str]:
        """Waits for ``count`` lines that begin with ``ready``; returns the rest of each."""
        while len(self.ready_lines) < count:
            self._heard.clear()
            await self._heard.wait()
        return self.ready_lines[:count]

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process and its group."""
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
        lines = _Lines(self._received)
        transport, _ = await loop.connect_read_pipe(lambda: lines, process.stdout)
        ended: asyncio.Future[int] = loop.create_future()

        def wait() -> None:
            code = process.wait()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(ended.set_result, code)

        threading.Thread(target=wait, name=f"wait-{self.name}", daemon=True).start()
        self._settling = loop.create_task(self._settle(ended, lines.ended, transport))

    async def _settle(
        self, ended: asyncio.Future[int], silent: asyncio.Future[None], transport: asyncio.BaseTransport
    ) -> None:
        code = await ended
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it left behind in its group
        self._guard.remove(self.pid)
        await asyncio.wait({silent}, timeout=1.0)  # its last lines, unless another process holds the pipe open
        transport.close()
        if self._rest:
            self._received(b"\n")
        self.exited.set_result(code)

    def _received(self, data: bytes) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError), self._log.open("ab") as file:
                file.write(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-MAX_LINE_BYTES:]
        for line in lines:
            text = line[:MAX_LINE_BYTES].decode(errors="replace").rstrip()
            if not text:
                continue
            self.last_lines.append(text)
            if text.startswith("ready ") or text == "ready":
                self.ready_lines.append(text.removeprefix("ready").strip())
                self._heard.set()


def _spawn(command: ProcessCommand, guard: Reaper) -> subprocess.Popen[bytes]:
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
    leash = (sys.executable, "-I", "-S", str(_CHILD_EXEC), str(guard.fd), str(os.getpid()))
    return subprocess.Popen(
        (*leash, *command.argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        start_new_session=True,
        pass_fds=(guard.fd,),
        env=environment,
    )


class _Lines(asyncio.Protocol):
    def __init__(self, received: Callable[[bytes], None]) -> None:
        self._received = received
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

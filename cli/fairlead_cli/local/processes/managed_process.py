"""A managed process: start, wait until it is ready, restart with growing delays after it ends.

States: Starting → Ready → (ended) Waiting → Starting → …, and Stopped at the end. Clock and sleep
are arguments.

Why: plain asyncio, because importing an HTTP client would delay the first token.
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fairlead.errors import FairleadError
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import end_with_first
from fairlead_cli.local.processes.child_process import ChildProcess, ProcessCommand
from fairlead_cli.local.processes.reaper import Reaper

FIRST_DELAY_SECONDS = 0.25

MAX_DELAY_SECONDS = 30.0

RESET_AFTER_SECONDS = 30.0
"""A process that was ready this long resets the count of failures."""

POLL_SECONDS = 0.05
TIMEOUT_SECONDS = 2.0


class ProcessPhase(StrEnum):
    """State of a managed process."""

    STARTING = "Starting"
    READY = "Ready"
    WAITING = "Waiting"
    STOPPED = "Stopped"


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process to manage.

    command: called for every start.

    wait_ready: returns once the process can be used.
    """

    name: str
    command: Callable[[], ProcessCommand]
    wait_ready: Callable[[ChildProcess], Awaitable[None]]
    log: Path | None = None


class ManagedProcess:
    """A process that is restarted until it is stopped.

    on_change: called at every change of the state.

    exit_reason: how it ended the last time; ``started_at`` and ``ready_at`` belong to the last
    start.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        *,
        reaper: Reaper,
        clock: Clock,
        on_change: Callable[["ManagedProcess"], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = spec.name
        self.phase = ProcessPhase.STOPPED
        self.child: ChildProcess | None = None
        self.starts = 0
        self.failures = 0
        self.was_ready = False
        self.exit_reason = ""
        self.pause_seconds = 0.0
        self.started_at: float | None = None
        self.ready_at: float | None = None
        self._spec = spec
        self._reaper = reaper
        self._clock = clock
        self._on_change = on_change
        self._sleep = sleep
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def restarts(self) -> int:
        return max(0, self.starts - 1)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"manage-{self.name}")

    def disable_restart(self) -> None:
        self._stopping.set()

    def kill(self) -> None:
        """Sends SIGKILL at once, also during ``stop()``, and does not restart the process."""
        self._stopping.set()
        if self.child is not None:
            self.child.send_signal(signal.SIGKILL)

    async def stop(self, grace_seconds: float) -> None:
        """Ends the process (SIGTERM, then SIGKILL) and does not restart it."""
        self._stopping.set()
        if self.child is not None and not self.child.exited.done():
            await self.child.stop(grace_seconds)
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while not self._stopping.is_set():
            ready_seconds = await self._run_once()
            if self._stopping.is_set():
                break
            self.failures = count_failures(self.failures, ready_seconds)
            self.pause_seconds = restart_delay_seconds(self.failures)
            self._set_phase(ProcessPhase.WAITING)
            await self._wait_unless_stopping(self._sleep(self.pause_seconds))
        self._set_phase(ProcessPhase.STOPPED)

    async def _run_once(self) -> float:
        """Runs the process once, to its end; returns the seconds that it was ready."""
        self.starts += 1
        self.started_at, self.ready_at = self._clock.now(), None
        try:
            self.child = await ChildProcess.start(self.name, self._spec.command(), self._reaper, self._spec.log)
        except (OSError, FairleadError) as error:  # no process or no port is available: counts as an end
            self.exit_reason = str(error)
            return 0.0
        if self._stopping.is_set():  # stop() came while it was being started
            await self.child.stop(0.5)
            return 0.0
        self._set_phase(ProcessPhase.STARTING)
        ready_seconds = await self._wait_for_exit(self.child)
        self.exit_reason = describe_exit(self.child.exited.result())
        return ready_seconds

    async def _wait_for_exit(self, child: ChildProcess) -> float:
        """Waits for the end of a process; returns the seconds that it was ready."""
        readiness = asyncio.ensure_future(self._spec.wait_ready(child))
        first_of: set[asyncio.Future[Any]] = {readiness, child.exited}
        await asyncio.wait(first_of, return_when=asyncio.FIRST_COMPLETED)
        if child.exited.done():
            readiness.cancel()
            await asyncio.wait({readiness})
            return 0.0
        readiness.result()
        since = self.ready_at = self._clock.now()
        self.was_ready = True
        self._set_phase(ProcessPhase.READY)
        await asyncio.wait({child.exited})
        return self._clock.now() - since

    async def _wait_unless_stopping(self, pause: Awaitable[None]) -> None:
        await end_with_first(pause, self._stopping.wait())

    def _set_phase(self, phase: ProcessPhase) -> None:
        self.phase = phase
        self._on_change(self)


def describe_exit(code: int) -> str:
    """Returns an exit code as text: ``exit code 1``, ``SIGKILL``."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def count_failures(failures: int, ready_seconds: float) -> int:
    """Returns the failures in a row, including the present one.

    They are 1 if the process was ready for at least RESET_AFTER_SECONDS, else one more than
    ``failures``.
    """
    return 1 if ready_seconds >= RESET_AFTER_SECONDS else failures + 1


def restart_delay_seconds(failures: int) -> float:
    """Returns the delay after so many failures in a row: 0 without one, then a quarter of a second,
    doubling, at most half a minute.
    """
    if failures <= 0:
        return 0.0
    return min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 16))


async def get_http_status(url: str) -> int | None:
    """Returns the status of one GET, or None without a valid answer."""
    return _status(await _get(url, b"\r\n"))


async def get_http_body(url: str) -> bytes | None:
    """Returns the body of one GET, or None without an answer of status 200."""
    answer = await _get(url, None)
    head, _, body = answer.partition(b"\r\n\r\n")
    return body if _status(head) == 200 else None


async def is_redis_up(socket_path: str | None, port: int | None) -> bool:
    answer = await _exchange("127.0.0.1", port, socket_path, b"PING\r\n", b"\r\n")
    return answer.startswith((b"+PONG", b"-NOAUTH"))


async def wait_until(condition: Callable[[], Awaitable[bool]], poll_seconds: float = POLL_SECONDS) -> None:
    """Polls until the condition is true; the caller sets a timeout."""
    while True:
        if await condition():
            return
        await asyncio.sleep(poll_seconds)


async def _get(url: str, terminator: bytes | None) -> bytes:
    parts = urlsplit(url)
    head = f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
    return await _exchange(parts.hostname, parts.port, None, head.encode(), terminator)


def _status(answer: bytes) -> int | None:
    fields = answer.split(b" ", 2)
    return int(fields[1]) if len(fields) > 1 and fields[1].isdigit() else None


async def _exchange(
    host: str | None, port: int | None, path: str | None, request: bytes, terminator: bytes | None
) -> bytes:
    """Returns what is sent up to the terminator, or else up to the end; nothing on a failure."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            opening = asyncio.open_unix_connection(path) if path else asyncio.open_connection(host, port)
            reader, writer = await opening
            try:
                writer.write(request)
                return await (reader.readuntil(terminator) if terminator else reader.read())
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return b""

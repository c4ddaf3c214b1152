"""A logger for a sink that may block: a full pipe stops neither the event loop nor a request.

Lines wait in a bounded queue, which a thread writes. Lines that do not fit are dropped and counted,
and the next written line is preceded by their number. Queued lines are written at the end of the
process, for a short time.
"""

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from fairlead.runtime.cli_options import parse_log_level

_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_STANDARD_ERROR = 2
_FLUSH_SECONDS = 1.0
_POLL_SECONDS = 0.005
_log = logging.getLogger("fairlead.gateway")
_TRUNCATION_MARK = b" [cut]\n"
LOG_LINES_PENDING: Final = 4_096
"""Limit: log lines that wait for a blocked sink; the next are dropped."""
LOG_LINE_BYTES: Final = 16_384
"""Limit: one line or traceback of the log; the rest is cut off."""


class NonBlockingWriter:
    """A queue of lines for a file descriptor, and the thread that writes them.

    The thread starts with the first line, so that a forked process gets its own.

    dropped: number of lost lines.
    put: writes bytes and returns how many were written, like `os.write`.
    """

    def __init__(
        self,
        fd: int,
        put: Callable[[int, bytes], int] = os.write,
        *,
        max_lines: int = LOG_LINES_PENDING,
        max_line_bytes: int = LOG_LINE_BYTES,
    ) -> None:
        self._fd = fd
        self._put = put
        self._max_lines, self._max_line_bytes = max_lines, max_line_bytes
        self._waiting: deque[bytes] = deque()
        self._more = threading.Event()
        self._pid = 0
        self._reported_drops = 0
        self.dropped = 0

    def write(self, line: bytes) -> None:
        """Queues a line with its newline, from any thread, without waiting. Long lines are cut."""
        if len(self._waiting) >= self._max_lines:
            self.dropped += 1
            return
        if len(line) > self._max_line_bytes:
            line = line[: self._max_line_bytes] + _TRUNCATION_MARK
        self._waiting.append(line)
        self._more.set()
        if self._pid != os.getpid():
            self._start_thread()

    def flush(self, seconds: float = _FLUSH_SECONDS) -> bool:
        """Blocks until the queue is empty or time is up, and returns True if it is empty."""
        end = time.monotonic() + seconds
        while self._waiting and self._pid == os.getpid() and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        return not self._waiting

    def warnings(self) -> list[str]:
        return [f"log: {self.dropped} lines were dropped, the sink did not take them"] if self.dropped else []

    def _start_thread(self) -> None:
        self._pid = os.getpid()
        threading.Thread(target=self._run, name="log-lines", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._more.wait()
            self._more.clear()
            while self._waiting:
                line = self._waiting[0]  # it counts as queued until it is written
                if self.dropped > self._reported_drops:
                    missing, self._reported_drops = self.dropped - self._reported_drops, self.dropped
                    line = b"%d log lines were dropped here: the sink did not take them\n%b" % (missing, line)
                self._write_whole(line)
                self._waiting.popleft()

    def _write_whole(self, line: bytes) -> None:
        """Writes a line in as many parts as needed. A closed sink drops it."""
        while line:
            try:
                line = line[self._put(self._fd, line) :]
            except BlockingIOError:
                time.sleep(_POLL_SECONDS)  # another process made the descriptor non-blocking
            except OSError:
                self.dropped += 1
                return


class NonBlockingHandler(logging.Handler):
    """A log handler that queues its lines; only `flush` blocks."""

    def __init__(self, writer: NonBlockingWriter) -> None:
        super().__init__()
        self.writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Queues a record."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - logging must not break its caller
            line = f"a log line of {record.name} could not be formatted"
        self.writer.write(line.encode("utf-8", "replace") + b"\n")

    def flush(self) -> None:
        self.writer.flush()


def on_loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Logs an exception of the event loop without its text, which may contain a prompt."""
    error = context.get("exception")
    kind = type(error).__name__ if error is not None else ""
    _log.error("%s: %s\n%s", context.get("message", "internal error in the event loop"), kind, traceback_lines(error))


def traceback_lines(error: BaseException | None) -> str:
    return "".join(traceback.format_tb(error.__traceback__)) if error is not None else ""


def _on_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    name = unraisable.exc_type.__name__
    _log.error("exception ignored: %s\n%s", name, traceback_lines(unraisable.exc_value))


_active_writers: list[NonBlockingWriter] = []


def start_logging(level: str | None) -> None:
    """Starts logging to the standard error stream, unless logging is already set up.

    Raises SettingsError for an unknown level.
    """
    name = parse_log_level(level)
    root = logging.getLogger()
    if root.handlers:
        return
    writer = NonBlockingWriter(_STANDARD_ERROR)
    handler = NonBlockingHandler(writer)
    handler.setFormatter(logging.Formatter(_FORMAT))
    root.addHandler(handler)
    root.setLevel(name)
    logging.captureWarnings(True)
    sys.unraisablehook = _on_unraisable
    _active_writers[:] = [writer]


def log_warnings() -> list[str]:
    return [warning for writer in _active_writers for warning in writer.warnings()]

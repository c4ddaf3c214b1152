"""Lines for a sink that may be stuck: a full pipe that nobody reads stops neither the event loop nor a request.

Lines wait in a bounded queue, and a thread of their own writes them. When the queue is full, lines are dropped and counted; the
next one that gets through is preceded by one that says how many are missing. At the end of the process the rest has a moment.
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
from typing import Any

from fairlead.errors import SettingsError
from fairlead.limits import Limits

_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_STANDARD_ERROR = 2
_LOG_LEVELS = ("debug", "info", "warning", "error")
_FLUSH_SECONDS = 1.0
_POLL_SECONDS = 0.005
_log = logging.getLogger("fairlead.gateway")
_TRUNCATION_MARK = b" [cut]\n"


class NonBlockingWriter:
    """Lines to a file descriptor. ``write`` never waits, from any thread; ``dropped`` counts what was lost.

    ``put`` writes bytes and says how many it took (os.write). The thread starts with the first line, so a forked process has its own.
    """

    def __init__(self, fd: int, limits: Limits, put: Callable[[int, bytes], int] = os.write) -> None:
        self._fd = fd
        self._put = put
        self._max_lines = limits.log_lines_pending
        self._max_line_bytes = limits.log_line_bytes
        self._waiting: deque[bytes] = deque()
        self._more = threading.Event()
        self._pid = 0
        self._reported_drops = 0
        self.dropped = 0

    def write(self, line: bytes) -> None:
        """One line with its end. Dropped when too many wait; cut when it is too long."""
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
        """Wait until everything is written, for ``seconds`` at most; whether it is. For the end of a process: it blocks."""
        end = time.monotonic() + seconds
        while self._waiting and self._pid == os.getpid() and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        return not self._waiting

    def warnings(self) -> list[str]:
        """What people should know, in words."""
        return [f"log: {self.dropped} lines were dropped, the sink did not take them"] if self.dropped else []

    def _start_thread(self) -> None:
        self._pid = os.getpid()
        threading.Thread(target=self._run, name="log-lines", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._more.wait()
            self._more.clear()
            while self._waiting:
                line = self._waiting[0]  # stays in the queue until it is written: that is what bounds what waits
                if self.dropped > self._reported_drops:
                    missing, self._reported_drops = self.dropped - self._reported_drops, self.dropped
                    line = b"%d log lines were dropped here: the sink did not take them\n%b" % (missing, line)
                self._write_whole(line)
                self._waiting.popleft()

    def _write_whole(self, line: bytes) -> None:
        """Write a line whole, however slowly the sink takes it; a sink that is gone takes nothing."""
        while line:
            try:
                line = line[self._put(self._fd, line) :]
            except BlockingIOError:
                time.sleep(_POLL_SECONDS)  # the descriptor was made non-blocking by whoever shares it
            except OSError:
                self.dropped += 1
                return


class NonBlockingHandler(logging.Handler):
    """Log records as lines of ``lines``."""

    def __init__(self, lines: NonBlockingWriter) -> None:
        super().__init__()
        self.writer = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Put one record aside."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a line that cannot be written must not break what logged it
            line = f"a log line of {record.name} could not be formatted"
        self.writer.write(line.encode("utf-8", "replace") + b"\n")

    def flush(self) -> None:
        """At the process's end."""
        self.writer.flush()


def on_loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler: what happened and where, but no text of the exception, which may hold a prompt."""
    error = context.get("exception")
    kind = type(error).__name__ if error is not None else ""
    _log.error("%s: %s\n%s", context.get("message", "a defect in the event loop"), kind, traceback_lines(error))


def traceback_lines(error: BaseException | None) -> str:
    """The lines of code that an exception came through, without its text."""
    return "".join(traceback.format_tb(error.__traceback__)) if error is not None else ""


def _on_unraisable(found: "sys.UnraisableHookArgs") -> None:
    _log.error("an exception that nobody could take: %s\n%s", found.exc_type.__name__, traceback_lines(found.exc_value))


_active_writers: list[NonBlockingWriter] = []


def start_logging(level: str | None, limits: Limits | None = None) -> None:
    """Log to the standard error stream from now on, unless somebody has set up logging already. Raises SettingsError for
    a ``level`` that is none."""
    name = (level or "info").lower()
    if name not in _LOG_LEVELS:
        field = "FAIRLEAD_LOG_LEVEL"
        raise SettingsError(f"{field} is not a level", field=field, hint=f"one of {', '.join(_LOG_LEVELS)}")
    root = logging.getLogger()
    if root.handlers:
        return
    lines = NonBlockingWriter(_STANDARD_ERROR, limits or Limits())
    handler = NonBlockingHandler(lines)
    handler.setFormatter(logging.Formatter(_FORMAT))
    root.addHandler(handler)
    root.setLevel(name.upper())
    logging.captureWarnings(True)
    sys.unraisablehook = _on_unraisable
    _active_writers[:] = [lines]


def log_warnings() -> list[str]:
    """What people should know of this process's log, in words."""
    return [words for lines in _active_writers for words in lines.warnings()]

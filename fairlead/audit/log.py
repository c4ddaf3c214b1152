"""The audit log of one process: in memory, on a stream, and in files.

`add` returns at once and never raises. A thread writes the files, and tries again while that fails.
If too many records wait, the oldest are lost and counted. A record then says how many.
"""

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fairlead.audit.files import AuditFiles
from fairlead.audit.reader import AuditQuery
from fairlead.audit.record import Action, AuditEvent, AuditRecord, encode_record, make_record
from fairlead.errors import SettingsError
from fairlead.runtime.clock import Clock
from fairlead.runtime.nonblocking_log import LOG_LINES_PENDING, NonBlockingWriter

STREAMS: Final = {"-": 1, "1": 2}
"""Values of `FAIRLEAD_AUDIT_LOG`, and the descriptors of the streams that they name."""
_RETRY_SECONDS = 1.0
_BATCH_RECORDS: Final = 256
AUDIT_RECENT: Final = 4_096
"""Limit: audit records in the memory of a process, which `/api/audit` answers."""
AUDIT_PENDING: Final = 16_384
"""Limit: audit records that wait for a disk; the oldest of more are lost, counted and reported."""


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """The outputs of a process's audit records, besides its memory.

    stream: file descriptor of a standard stream.
    folder: of the files.
    max_recent: records in memory.
    max_pending: records that wait for the files.
    max_stream_lines: records that wait for the stream.
    """

    stream: int | None = None
    folder: Path | None = None
    max_recent: int = AUDIT_RECENT
    max_pending: int = AUDIT_PENDING
    max_stream_lines: int = LOG_LINES_PENDING


def parse_audit_options(log: str | None, folder: str | None) -> AuditOptions:
    """Returns the options of `FAIRLEAD_AUDIT_LOG` and `FAIRLEAD_AUDIT_DIR`.

    Raises SettingsError.
    """
    if log is not None and log not in STREAMS:
        raise SettingsError(
            "FAIRLEAD_AUDIT_LOG is neither - nor 1",
            field="FAIRLEAD_AUDIT_LOG",
            hint="write - for standard output, 1 for standard error; FAIRLEAD_AUDIT_DIR names a folder for files",
        )
    return AuditOptions(None if log is None else STREAMS[log], None if folder is None else Path(folder))


class AuditLog:
    """The audit log of one process.

    component, instance: name the process in every record.
    """

    def __init__(self, component: str, instance: str, clock: Clock, options: AuditOptions = AuditOptions()) -> None:
        self._component = component
        self._instance = instance
        self._clock = clock
        self._recent: deque[AuditRecord] = deque(maxlen=options.max_recent)
        self._sequence = 0
        self._stream = (
            None if options.stream is None else NonBlockingWriter(options.stream, max_lines=options.max_stream_lines)
        )
        self._held: list[bytes] | None = None
        self._files: _FileThread | None = None
        if options.folder is not None:
            files = AuditFiles(options.folder, f"{component}-{instance}")
            self._files = _FileThread(files, options.max_pending, clock)

    @property
    def lost(self) -> int:
        in_files = 0 if self._files is None else self._files.lost
        return in_files + (0 if self._stream is None else self._stream.dropped)

    @property
    def written(self) -> int:
        return self._sequence

    def add(self, event: AuditEvent) -> None:
        """Records an event, from the process's own thread."""
        self._add(event)
        lost = 0 if self._files is None else self._files.take_loss()
        if lost:
            text = f"{lost} records before this one could not be written"
            self._add(
                AuditEvent(
                    Action.RECORDS_LOST,
                    f"AuditLog/{self._component}",
                    self._component,
                    after={"records": lost},
                    reason=text,
                )
            )

    def hold_stream(self) -> None:
        """Keeps lines for the stream until `release_stream`.

        Why: the first line on the standard output of a process says that it is ready.
        """
        self._held = []

    def release_stream(self) -> None:
        """Writes the lines that were kept, and from now on each at once."""
        lines, self._held = self._held or [], None
        for line in lines:
            self._write_stream(line)

    def recent(self, query: AuditQuery, max_records: int) -> list[AuditRecord]:
        """Returns the newest records in memory that are asked for, the newest first."""
        found: list[AuditRecord] = []
        for record in reversed(self._recent):
            if len(found) >= max_records:
                break
            if query.matches(record):
                found.append(record)
        return found

    def warnings(self) -> list[str]:
        """Returns what is wrong with the log, as text."""
        lines = []
        if self._files is not None and self._files.problem is not None:
            lines.append(f"audit records cannot be written: {self._files.problem}")
        if self.lost:
            lines.append(f"{self.lost} audit records were lost")
        return lines

    def close(self, seconds: float = 1.0) -> None:
        """Writes what waits, for that many seconds at most, and closes the files."""
        self.release_stream()
        if self._stream is not None:
            self._stream.flush(seconds)
        if self._files is not None:
            self._files.close(seconds)

    def _add(self, event: AuditEvent) -> None:
        self._sequence += 1
        record = make_record(
            event,
            wall=self._clock.wall(),
            component=self._component,
            instance=self._instance,
            sequence=self._sequence,
        )
        self._recent.append(record)
        line = encode_record(record)
        self._write_stream(line)
        if self._files is not None:
            self._files.put(line)

    def _write_stream(self, line: bytes) -> None:
        if self._stream is None:
            return
        if self._held is None:
            self._stream.write(line + b"\n")
        else:
            self._held.append(line)


class _FileThread:
    """A thread that writes lines to audit files; it starts with the first line.

    problem: why the last write failed; None: it did not.
    """

    def __init__(self, files: AuditFiles, max_pending: int, clock: Clock) -> None:
        self._files = files
        self._clock = clock
        self._max_pending = max_pending
        self._pending: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._more = threading.Event()
        self._idle = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._told_loss = 0
        self.lost = 0
        self.problem: str | None = None

    def put(self, line: bytes) -> None:
        with self._lock:
            if len(self._pending) >= self._max_pending:
                self._pending.popleft()
                self.lost += 1
            self._pending.append(line)
        self._idle.clear()
        self._more.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="audit-files", daemon=True)
            self._thread.start()

    def take_loss(self) -> int:
        """Returns the number of lines that were lost since the last call; 0 while writes fail."""
        if self.problem is not None or self.lost == self._told_loss:
            return 0
        lost, self._told_loss = self.lost - self._told_loss, self.lost
        return lost

    def close(self, seconds: float) -> None:
        if self._thread is None:
            return
        self._idle.wait(seconds)
        self._stopping.set()
        self._more.set()
        self._thread.join(seconds)
        if not self._thread.is_alive():
            self._files.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._more.wait()
            self._more.clear()
            for batch in self._batches():
                while not self._write(batch):
                    if self._stopping.wait(_RETRY_SECONDS):
                        return
            self._idle.set()

    def _batches(self) -> Iterator[list[bytes]]:
        while True:
            with self._lock:
                batch = [self._pending.popleft() for _ in range(min(_BATCH_RECORDS, len(self._pending)))]
            if not batch:
                return
            yield batch

    def _write(self, batch: list[bytes]) -> bool:
        try:
            self._files.append(batch, self._clock.wall())
        except OSError as error:
            self.problem = error.strerror or str(error)
            return False
        self.problem = None
        return True

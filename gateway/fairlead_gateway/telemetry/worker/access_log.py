"""The access log: one JSON object per line, for every request, with or without an engine.

It holds counts, times, ids and names; never a prompt, a response, a query string or a key. A thread
(`background_writer`) writes the lines to a file, standard output or standard error. If the receiver
is stuck, lines are lost, never requests.
"""

import os
import select
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from fairlead.limits import Limits
from fairlead_gateway.caller_key import caller_name
from fairlead_gateway.http import trace_context
from fairlead_gateway.http.listener import HttpRequest, ResponseWriter
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.telemetry.handoff_record import HandoffRecord
from fairlead_gateway.telemetry.worker.background_writer import BackgroundWriter, QueueBounds

STDOUT_TARGET, STDERR_TARGET = "-", "1"
_ATOMIC_WRITE_BYTES = 4_096  # a pipe takes this much as a whole
_MAX_PATH_CHARS = 200
_RETRY_SECONDS = 0.5


class AccessRecord(msgspec.Struct):
    """One line; null: not known, or there was none. Durations are seconds.

    time: filled in by the writer.
    request_id: as in the answer; the client's own, if it sent one.
    decision: the gateway's own id, which engines and the decision log have.
    """

    time: str
    request_id: str
    method: str | None
    path: str | None
    status: int
    error: str | None
    model: str | None = None
    stream: bool | None = None
    instance: str | None = None
    rule: str | None = None
    attempts: int = 0
    handoff: str | None = None
    duration_seconds: float | None = None
    ttft_seconds: float | None = None
    overhead_seconds: float | None = None
    queued_seconds: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    predicted_cached_tokens: int | None = None
    output_tokens: int | None = None
    caller: str | None = None
    client: str | None = None
    trace_id: str | None = None
    decision: str | None = None
    dialect: str | None = None


class AccessLog:
    """The access log of one worker.

    target: a path, `-` for standard output, `1` for standard error.
    log_clients: whether client addresses are logged.
    """

    def __init__(
        self,
        target: str,
        *,
        log_clients: bool,
        limits: Limits,
        on_dropped: Callable[[int], None],
        wall: Callable[[], float],
    ) -> None:
        self._log_clients = log_clients
        self._wall = wall
        stopping = threading.Event()
        self.writer: BackgroundWriter[tuple[float, AccessRecord]] = BackgroundWriter(
            "access-log",
            LogFileWriter(target, stopping),
            QueueBounds(limits.access_log_lines_pending),
            on_dropped=on_dropped,
            stopping=stopping,
        )

    def on_finished(self, context: RequestContext) -> None:
        """Logs a request that was routed and has ended."""
        http_request, choice, outcome = context.http_request, context.choice, context.result
        record = AccessRecord(  # by position, which costs a sixth of naming all of them
            "",
            http_request.id,
            http_request.head.method,
            http_request.head.path[:_MAX_PATH_CHARS],
            outcome.status,
            outcome.error,
            outcome.model_key,
            context.request.stream,
            outcome.instance_id,
            None if choice is None else choice.decision.rule,
            outcome.attempts,
            _handoff_text(context.handoff_record),
            outcome.duration_seconds,
            outcome.ttft_seconds,
            outcome.overhead_seconds,
            outcome.queued_seconds,
            outcome.prompt_tokens,
            outcome.cached_tokens,
            outcome.predicted_cached_tokens,
            outcome.output_tokens,
            caller_name(http_request.caller),
            self._client_address(http_request),
            _trace_id(context),
            context.id,
            context.request.dialect.name,
        )
        self.writer.offer((outcome.started_wall, record))

    def on_answered_locally(
        self,
        http_request: HttpRequest | None,
        response: ResponseWriter,
        status: int,
        error: str | None,
        model_key: str | None,
    ) -> None:
        """Logs a request that the gateway itself answered.

        http_request: None if the bytes could not be parsed as a request.
        """
        head = http_request.head if http_request is not None else None
        record = AccessRecord(
            "",
            response.request_id,
            head.method if head is not None else None,
            head.path[:_MAX_PATH_CHARS] if head is not None else None,
            status,
            error,
            model=model_key,
            caller=caller_name(http_request.caller) if http_request is not None else None,
            client=self._client_address(http_request, response),
        )
        self.writer.offer((http_request.received_wall if http_request is not None else self._wall(), record))

    def _client_address(self, http_request: HttpRequest | None, response: ResponseWriter | None = None) -> str | None:
        if not self._log_clients:
            return None
        if http_request is not None:
            return http_request.client_address
        return response.client_address() if response is not None else None


def _trace_id(context: RequestContext) -> str | None:
    """Returns the id of the request's trace, recorded here or only passed on; None without one."""
    if context.trace is not None:
        return context.trace.trace_id
    head = context.http_request.head
    received = trace_context.extract_context(head.fields) if head.get(trace_context.TRACEPARENT) is not None else None
    return None if received is None else received.trace_id


def _handoff_text(record: HandoffRecord | None) -> str | None:
    if record is None:
        return None
    return record.outcome if record.reason == "none" else f"{record.outcome}:{record.reason}"


class LogFileWriter:
    """A writer of batches of lines, in the writer's thread. A file that was moved away is opened
    again.
    """

    def __init__(self, target: str, stopping: threading.Event) -> None:
        self._path = None if target in (STDOUT_TARGET, STDERR_TARGET) else target
        self._stream = sys.__stdout__ if target == STDOUT_TARGET else sys.__stderr__
        self._stopping = stopping
        self._file = -1
        self._file_identity: tuple[int, int] | None = None
        self._encoder = msgspec.json.Encoder()

    def __call__(self, batch: list[tuple[float, AccessRecord]]) -> None:
        """Writes all records. Raises OSError if one cannot be written."""
        descriptor = self._current_descriptor()
        part = b""
        for wall, record in batch:
            record.time = datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            record.duration_seconds = _round_microseconds(record.duration_seconds)
            record.ttft_seconds = _round_microseconds(record.ttft_seconds)
            record.overhead_seconds = _round_microseconds(record.overhead_seconds)
            record.queued_seconds = _round_microseconds(record.queued_seconds)
            line = self._encoder.encode(record) + b"\n"
            if part and len(part) + len(line) > _ATOMIC_WRITE_BYTES:
                self._write(descriptor, part)
                part = b""
            part += line
        self._write(descriptor, part)

    def _current_descriptor(self) -> int:
        """Returns the descriptor to write to; opens the file again after a rotation."""
        if self._path is None:
            if self._stream is None:
                raise OSError("there is no such stream")
            return self._stream.fileno()
        try:
            status = os.stat(self._path)
            identity = (status.st_dev, status.st_ino)
        except FileNotFoundError:
            identity = None
        if self._file < 0 or identity != self._file_identity:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            opened = os.fstat(self._file)
            self._file_identity = (opened.st_dev, opened.st_ino)
        return self._file

    def _write(self, descriptor: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:  # another process made the stream non-blocking
                if self._stopping.is_set():
                    raise
                select.select([], [descriptor], [], _RETRY_SECONDS)


def _round_microseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)

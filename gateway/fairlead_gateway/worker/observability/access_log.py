"""The access log: one JSON object a line for every request, for those that never reached an engine too.

It holds counts, times, ids and names; never a prompt, never an answer, never the query string, never a key. Lines are written by
a thread (``outbox``) to a file, standard output or standard error; a receiver that is stuck costs lines, never a request.
"""

import os
import select
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from fairlead.limits import Limits
from fairlead_gateway.http import trace_context
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.http.response_writer import ResponseWriter
from fairlead_gateway.telemetry import RequestOutcome
from fairlead_gateway.telemetry.handoff_record import HandoffRecord
from fairlead_gateway.worker.observability.background_writer import BackgroundWriter
from fairlead_gateway.worker.request_context import RequestContext

STDOUT_TARGET, STDERR_TARGET = "-", "1"
_ATOMIC_WRITE_BYTES = 4_096  # what a pipe takes whole, whoever else writes to it
_MAX_PATH_CHARS = 200
_RETRY_SECONDS = 0.5


class AccessRecord(msgspec.Struct):
    """One line. Null is "not known" or "there was none"; ``time`` is filled in by the writer, durations are seconds."""

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
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    predicted_cached_tokens: int | None = None
    output_tokens: int | None = None
    caller: str | None = None
    client: str | None = None
    trace_id: str | None = None


class AccessLog:
    """``target`` is a path, ``-`` (standard output) or ``1`` (standard error). ``clients``: whether addresses are written down."""

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
        self._writer: BackgroundWriter[tuple[float, AccessRecord]] = BackgroundWriter(
            "access-log",
            LogFileWriter(target, stopping),
            max_waiting=limits.access_log_lines_pending,
            on_dropped=on_dropped,
            stopping=stopping,
        )

    def on_finished(self, context: RequestContext, outcome: RequestOutcome) -> None:
        """A request that was routed is over."""
        request, decision = context.http_request, context.decision
        line = AccessRecord(  # by position, which costs a sixth of naming all of them
            "",
            context.id,
            request.head.method,
            request.head.path[:_MAX_PATH_CHARS],
            outcome.status,
            outcome.error,
            outcome.model_key,
            context.request.stream,
            outcome.instance_id,
            None if decision is None else decision.rule,
            outcome.attempts,
            _handoff_text(context.handoff_record),
            outcome.duration_seconds,
            outcome.ttft_seconds,
            outcome.overhead_seconds,
            outcome.prompt_tokens,
            outcome.cached_tokens,
            outcome.predicted_cached_tokens,
            outcome.output_tokens,
            request.caller,
            self._client_address(request),
            _trace_id(context),
        )
        self._writer.offer((outcome.started_wall, line))

    def on_answered_locally(
        self,
        http_request: HttpRequest | None,
        response: ResponseWriter,
        status: int,
        error: str | None,
        model_key: str | None,
    ) -> None:
        """A request was answered by the gateway itself; ``request`` is None when it could not be read as one."""
        head = http_request.head if http_request is not None else None
        line = AccessRecord(
            "",
            response.request_id,
            head.method if head is not None else None,
            head.path[:_MAX_PATH_CHARS] if head is not None else None,
            status,
            error,
            model=model_key,
            caller=http_request.caller if http_request is not None else None,
            client=self._client_address(http_request, response),
        )
        self._writer.offer((http_request.received_wall if http_request is not None else self._wall(), line))

    def warning(self) -> str | None:
        """Why lines are being lost, in words."""
        return self._writer.warning

    def close(self, seconds: float) -> None:
        """Write what waits, for at most ``seconds``."""
        self._writer.close(seconds)

    def _client_address(self, http_request: HttpRequest | None, response: ResponseWriter | None = None) -> str | None:
        if not self._log_clients:
            return None
        if http_request is not None:
            return http_request.client_address
        return response.client_address() if response is not None else None


def _trace_id(context: RequestContext) -> str | None:
    """Of the trace that the request belongs to, recorded here or only passed on."""
    if context.trace is not None:
        return context.trace.trace_id
    head = context.http_request.head
    found = trace_context.extract_context(head.fields) if head.get(trace_context.TRACEPARENT) is not None else None
    return None if found is None else found.trace_id


def _handoff_text(record: HandoffRecord | None) -> str | None:
    if record is None:
        return None
    return record.outcome if record.reason == "none" else f"{record.outcome}:{record.reason}"


class LogFileWriter:
    """Writes batches of lines; everything here runs in the outbox's thread. Files that were moved away are opened anew."""

    def __init__(self, target: str, stopping: threading.Event) -> None:
        self._path = None if target in (STDOUT_TARGET, STDERR_TARGET) else target
        self._stream = sys.__stdout__ if target == STDOUT_TARGET else sys.__stderr__
        self._stopping = stopping
        self._file = -1
        self._file_identity: tuple[int, int] | None = None
        self._encoder = msgspec.json.Encoder()

    def __call__(self, batch: list[tuple[float, AccessRecord]]) -> None:
        """Write all of them. Raises OSError when the system does not take one."""
        descriptor = self._descriptor()
        part = b""
        for wall, line in batch:
            line.time = datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line.duration_seconds = _round_microseconds(line.duration_seconds)
            line.ttft_seconds = _round_microseconds(line.ttft_seconds)
            line.overhead_seconds = _round_microseconds(line.overhead_seconds)
            text = self._encoder.encode(line) + b"\n"
            if part and len(part) + len(text) > _ATOMIC_WRITE_BYTES:
                self._write(descriptor, part)
                part = b""
            part += text
        self._write(descriptor, part)

    def _descriptor(self) -> int:
        if self._path is None:
            if self._stream is None:
                raise OSError("there is no such stream")
            return self._stream.fileno()
        try:
            found = os.stat(self._path)
            there = (found.st_dev, found.st_ino)
        except FileNotFoundError:
            there = None
        if self._file < 0 or there != self._file_identity:
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
            except BlockingIOError:  # somebody made the stream non-blocking
                if self._stopping.is_set():
                    raise
                select.select([], [descriptor], [], _RETRY_SECONDS)


def _round_microseconds(seconds: float | None) -> float | None:
    """To the microsecond; more is noise."""
    return None if seconds is None else round(seconds, 6)

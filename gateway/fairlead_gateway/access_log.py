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
from fairlead_gateway import trace
from fairlead_gateway.handoff_story import HandoffStory
from fairlead_gateway.job import Job
from fairlead_gateway.listen import Request
from fairlead_gateway.outbox import Outbox
from fairlead_gateway.reply import Reply
from fairlead_gateway.telemetry import Outcome

OUTPUT, ERROR = "-", "1"
_AT_ONCE_BYTES = 4_096  # what a pipe takes whole, whoever else writes to it
_PATH_CHARS = 200
_LOOK_SECONDS = 0.5


class Line(msgspec.Struct):
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
        clients: bool,
        limits: Limits,
        lost: Callable[[int], None],
        wall: Callable[[], float],
    ) -> None:
        self._clients = clients
        self._wall = wall
        stopping = threading.Event()
        self._outbox: Outbox[tuple[float, Line]] = Outbox(
            "access-log", Lines(target, stopping), limit=limits.access_log_lines, lost=lost, stopping=stopping
        )

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A request that was routed is over."""
        request, decision = job.request, job.decision
        line = Line(  # by position, which costs a sixth of naming all of them
            "",
            job.id,
            request.head.method,
            request.head.path[:_PATH_CHARS],
            outcome.status,
            outcome.error,
            outcome.model_key,
            job.ask.stream,
            outcome.instance_id,
            None if decision is None else decision.rule,
            outcome.attempts,
            _handoff(job.story),
            outcome.duration_seconds,
            outcome.ttft_seconds,
            outcome.overhead_seconds,
            outcome.prompt_tokens,
            outcome.cached_tokens,
            outcome.predicted_cached_tokens,
            outcome.output_tokens,
            request.caller,
            self._address(request),
            _trace_id(job),
        )
        self._outbox.offer((outcome.started_wall, line))

    def answered(
        self, request: Request | None, reply: Reply, status: int, error: str | None, model_key: str | None
    ) -> None:
        """A request was answered by the gateway itself; ``request`` is None when it could not be read as one."""
        head = request.head if request is not None else None
        line = Line(
            "",
            reply.request_id,
            head.method if head is not None else None,
            head.path[:_PATH_CHARS] if head is not None else None,
            status,
            error,
            model=model_key,
            caller=request.caller if request is not None else None,
            client=self._address(request, reply),
        )
        self._outbox.offer((request.wall if request is not None else self._wall(), line))

    def problem(self) -> str | None:
        """Why lines are being lost, in words."""
        return self._outbox.problem

    def close(self, seconds: float) -> None:
        """Write what waits, for at most ``seconds``."""
        self._outbox.close(seconds)

    def _address(self, request: Request | None, reply: Reply | None = None) -> str | None:
        if not self._clients:
            return None
        if request is not None:
            return request.client
        return reply.client() if reply is not None else None


def _trace_id(job: Job) -> str | None:
    """Of the trace that the request belongs to, recorded here or only passed on."""
    if job.trace is not None:
        return job.trace.trace_id
    head = job.request.head
    found = trace.context(head.fields) if head.get(trace.PARENT) is not None else None
    return None if found is None else found.trace_id


def _handoff(story: HandoffStory | None) -> str | None:
    if story is None:
        return None
    return story.outcome if story.reason == "none" else f"{story.outcome}:{story.reason}"


class Lines:
    """Writes batches of lines; everything here runs in the outbox's thread. Files that were moved away are opened anew."""

    def __init__(self, target: str, stopping: threading.Event) -> None:
        self._path = None if target in (OUTPUT, ERROR) else target
        self._fixed = sys.__stdout__ if target == OUTPUT else sys.__stderr__
        self._stopping = stopping
        self._file = -1
        self._known: tuple[int, int] | None = None
        self._encoder = msgspec.json.Encoder()

    def __call__(self, batch: list[tuple[float, Line]]) -> None:
        """Write all of them. Raises OSError when the system does not take one."""
        descriptor = self._descriptor()
        part = b""
        for wall, line in batch:
            line.time = datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line.duration_seconds = _rounded(line.duration_seconds)
            line.ttft_seconds = _rounded(line.ttft_seconds)
            line.overhead_seconds = _rounded(line.overhead_seconds)
            text = self._encoder.encode(line) + b"\n"
            if part and len(part) + len(text) > _AT_ONCE_BYTES:
                self._put(descriptor, part)
                part = b""
            part += text
        self._put(descriptor, part)

    def _descriptor(self) -> int:
        if self._path is None:
            if self._fixed is None:
                raise OSError("there is no such stream")
            return self._fixed.fileno()
        try:
            found = os.stat(self._path)
            there = (found.st_dev, found.st_ino)
        except FileNotFoundError:
            there = None
        if self._file < 0 or there != self._known:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            opened = os.fstat(self._file)
            self._known = (opened.st_dev, opened.st_ino)
        return self._file

    def _put(self, descriptor: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:  # somebody made the stream non-blocking
                if self._stopping.is_set():
                    raise
                select.select([], [descriptor], [], _LOOK_SECONDS)


def _rounded(seconds: float | None) -> float | None:
    """To the microsecond; more is noise."""
    return None if seconds is None else round(seconds, 6)

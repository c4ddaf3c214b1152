"""A worker's client of its checking process.

The first large body starts the process. It gets one body at a time, and is replaced if it is late,
exits or sends an invalid reply.

Why a process: parsing holds the interpreter's lock. A thread that parses 2 million token ids keeps
the event loop waiting for 0.2 s. The exchange with a process does not hold the lock.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Raw

from fairlead.limits import Limits
from fairlead_gateway.errors import BadRequest, Overloaded
from fairlead_gateway.worker.body_check.protocol import LENGTH_BYTES, BodyQuery, BodyReply, encode_frame, encode_limits
from fairlead_gateway.worker.openai.body_parser import ParsedBody, parsed_checked_body
from fairlead_gateway.worker.openai.schemas import (
    BODY_DECODERS,
    CommonFields,
    CompletionRequest,
    EmbeddingRequest,
)

COMMAND: Final = (sys.executable, "-m", "fairlead_gateway.worker.body_check.process")
_PASSED_VARIABLES: Final = frozenset({"PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG"})
"""Environment variables of the worker that the process gets; secrets are not among them."""


class BodyChecker:
    """The client of one checking process, to be used from one thread; `command` starts it."""

    def __init__(
        self, limits: Limits, *, environ: Mapping[str, str] | None = None, command: Sequence[str] = COMMAND
    ) -> None:
        variables = os.environ if environ is None else environ
        self._limits = limits
        self._environ = {name: value for name, value in variables.items() if name in _PASSED_VARIABLES}
        self._command = (*command, encode_limits(limits))
        self._lock = threading.Lock()
        self._is_closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self.start_count = 0

    def parse_body(self, kind: type[CommonFields], body: bytes, *, wants_bounds: bool = False) -> ParsedBody:
        """Parses a body as `kind`.

        wants_bounds: the result has its `bounds`, which strict limits read.

        Raises BadRequest, which names the field, and Overloaded if the body cannot be checked.
        """
        reply = self._check(BodyQuery(kind.__name__, len(body), wants_bounds), body)
        fields = _decode_fields(kind, reply)
        if isinstance(fields, CompletionRequest):
            fields.prompt = Raw(memoryview(body)[reply.prompt_start : reply.prompt_end])
        elif isinstance(fields, EmbeddingRequest):
            fields.input = Raw(memoryview(body)[reply.prompt_start : reply.prompt_end])
        parsed = parsed_checked_body(fields, {name: Raw(value) for name, value in reply.members.items()})
        parsed.set_cache_variant(reply.cache_variant)
        parsed.bounds = reply.bounds
        parsed.context = [body[start:end] for start, end in reply.context]
        parsed.repeated_bytes, parsed.prompts = reply.repeated_bytes, reply.prompts
        if reply.prompt_end:
            parsed.messages_start, parsed.messages_end = reply.prompt_start + 1, reply.prompt_end - 1
        return parsed

    def close(self) -> None:
        """Ends the process; a body that is being checked fails."""
        self._is_closed = True
        self._end_process()

    # --- internal

    def _check(self, query: BodyQuery, body: bytes) -> BodyReply:
        try:
            reply = self._exchange(query, body)
        except (OSError, EOFError, msgspec.MsgspecError):
            self._end_process()
            raise Overloaded(
                "the body could not be checked", hint="try again", headers=(("retry-after", "1"),)
            ) from None
        problem = reply.problem
        if problem is not None:
            error = BadRequest(problem.message, param=problem.param, code=problem.code, hint=problem.hint)
            error.repairs = problem.repairs
            raise error
        return reply

    def _exchange(self, query: BodyQuery, body: bytes) -> BodyReply:
        channel = self._ensure_process()
        channel.sendall(encode_frame(query))
        channel.sendall(body)
        size = int.from_bytes(_receive(channel, LENGTH_BYTES), "big")
        if size > self._limits.body_bytes:
            raise EOFError
        return msgspec.msgpack.decode(_receive(channel, size), type=BodyReply)

    def _ensure_process(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            self._end_process()
        with self._lock:
            if self._is_closed:
                raise EOFError
            if self._channel is not None:
                return self._channel
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            ours.settimeout(self._limits.body_check_seconds)
            try:
                with theirs:
                    self._process = subprocess.Popen(
                        self._command,
                        stdin=theirs.fileno(),
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,  # a traceback may hold a prompt
                        env=self._environ,
                    )
            except OSError:
                ours.close()
                raise
            self._channel = ours
            self.start_count += 1
            return ours

    def _end_process(self) -> None:
        with self._lock:
            process, self._process = self._process, None
            channel, self._channel = self._channel, None
        if process is not None:
            process.kill()
            process.wait()
        if channel is not None:
            channel.close()


def _decode_fields(kind: type[CommonFields], reply: BodyReply) -> CommonFields:
    fields: CommonFields = BODY_DECODERS[kind].decode(reply.fields)
    return fields


def _receive(channel: socket.socket, size: int) -> bytes:
    """Returns exactly `size` bytes. Raises EOFError if the channel ends before."""
    data = bytearray()
    while len(data) < size:
        part = channel.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)

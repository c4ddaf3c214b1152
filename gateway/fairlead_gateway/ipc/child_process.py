"""Child processes that answer queries one by one: the parent's client, and the child's loop.

Messages are msgpack behind a length of 4 bytes, big-endian. They pass through a socket pair, which
is the child's standard input and output. The child ends when the socket closes.
"""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, Final, TypeVar

import msgspec

Query = TypeVar("Query")
Reply = TypeVar("Reply")

LENGTH_BYTES: Final = 4
"""Bytes of the length in front of a message."""
_PASSED_VARIABLES: Final = frozenset(
    {"PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "LD_LIBRARY_PATH", "HOME", "LANG"}
)
"""Environment variables of the parent that a child gets; secrets are not among them."""


class ChildProcess:
    """The client of one child process, to be used from threads.

    The first query starts the process. It gets one query at a time, and is replaced if it is late,
    exits or sends an invalid reply.

    - name: the kind of process, for errors.
    - reply_seconds: of one exchange.
    - max_reply_bytes: of one reply; None if the reply is trusted.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        reply_seconds: float,
        max_reply_bytes: int | None = None,
    ) -> None:
        self._name = name
        self._command = tuple(command)
        self._environ = {name: value for name, value in environ.items() if name in _PASSED_VARIABLES}
        self._reply_seconds = reply_seconds
        self._max_reply_bytes = max_reply_bytes
        self._turn = threading.Lock()
        self._state = threading.Lock()
        self._channel: socket.socket | None = None
        self._keeps_process = True
        self.process: subprocess.Popen[bytes] | None = None
        self.is_closed = False
        self.start_count = 0

    def start(self) -> socket.socket:
        """Starts the process, unless it runs; returns its channel.

        Raises EOFError after `close`, and OSError.
        """
        if self.process is not None and self.process.poll() is not None:
            self.end()
        with self._state:
            if self.is_closed:
                raise EOFError
            if self._channel is not None:
                return self._channel
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    self.process = subprocess.Popen(
                        self._command,
                        stdin=theirs.fileno(),
                        stdout=theirs.fileno(),
                        stderr=subprocess.DEVNULL,  # a traceback may hold a prompt or a digest
                        env=self._environ,
                    )
            except BaseException:
                ours.close()
                raise
            self._channel = ours
            self.start_count += 1
            return ours

    def exchange(self, query: object, reply_type: type[Reply], body: bytes = b"") -> Reply:
        """Sends a query and the body that follows it; returns the reply.

        An error ends the process. Raises TimeoutError, another OSError, EOFError, MsgspecError, or
        ValueError if the query cannot be encoded.
        """
        with self._turn:
            try:
                return self._exchange(query, reply_type, body)
            except BaseException:
                self.end()
                raise
            finally:
                if not self._keeps_process:
                    self.end()

    def release(self) -> None:
        """Ends the process, and from now on each one after its query."""
        self._keeps_process = False
        if self._turn.acquire(blocking=False):
            try:
                self.end()
            finally:
                self._turn.release()

    def end(self) -> None:
        """Ends the process; a query that it answers fails."""
        with self._state:
            process, self.process = self.process, None
            channel, self._channel = self._channel, None
        if process is not None:
            process.kill()
            process.wait()
        if channel is not None:
            channel.close()

    def close(self) -> None:
        self.is_closed = True
        self.end()

    def _exchange(self, query: object, reply_type: type[Reply], body: bytes) -> Reply:
        channel = self.start()
        deadline = time.monotonic() + self._reply_seconds
        channel.settimeout(self._reply_seconds)
        channel.sendall(encode_frame(query))
        channel.sendall(body)
        size = int.from_bytes(_receive(channel, LENGTH_BYTES, deadline), "big")
        if self._max_reply_bytes is not None and size > self._max_reply_bytes:
            raise msgspec.ValidationError(f"the {self._name} process sent a reply that is too large")
        return msgspec.msgpack.decode(_receive(channel, size, deadline), type=reply_type)


def _receive(channel: socket.socket, size: int, deadline: float) -> bytes:
    """Returns exactly `size` bytes. Raises EOFError if the channel ends before."""
    data = bytearray()
    while len(data) < size:
        channel.settimeout(max(deadline - time.monotonic(), 0.001))  # 0 would not wait at all
        part = channel.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def encode_frame(message: object) -> bytes:
    payload = msgspec.msgpack.encode(message)
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


def serve(queries: BinaryIO, replies: BinaryIO, query_type: type[Query], reply: Callable[[Query], object]) -> None:
    """Replies to queries until the input or the parent ends."""
    try:
        while True:
            size = int.from_bytes(read_exactly(queries, LENGTH_BYTES), "big")
            query = msgspec.msgpack.decode(read_exactly(queries, size), type=query_type)
            replies.write(encode_frame(reply(query)))
            replies.flush()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def read_exactly(stream: BinaryIO, size: int) -> bytes:
    """Returns exactly `size` bytes. Raises EOFError if the stream ends before."""
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def serve_parent(query_type: type[Query], reply: Callable[[Query], object]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all processes; the parent decides
    serve(sys.stdin.buffer, sys.stdout.buffer, query_type, reply)

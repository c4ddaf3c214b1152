"""The supervisor's client of the parsing process.

At the start of a gateway, one process parses all files. Later, each edit starts one.

If the process cannot be started, ends early or is late, the supervisor parses the file itself. It
then has the parser in memory.
"""

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Final

import msgspec

from fairlead.errors import ManifestError, Unavailable
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead.tenants.documents import TenantDocument
from fairlead_gateway.supervisor.file_parsing.protocol import (
    FLEET,
    KEYS,
    LENGTH_BYTES,
    TENANTS,
    FileQuery,
    FileReply,
    create_query,
    encode_frame,
)

COMMAND: Final = (sys.executable, "-m", "fairlead_gateway.supervisor.file_parsing.process")
_PASSED_VARIABLES: Final = frozenset({"PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "LD_LIBRARY_PATH", "LANG"})
"""Environment variables of the gateway that the process gets; secrets are not among them."""
_MAX_SECONDS: Final = 60.0  # for one file; the largest takes ten


class FileParser:
    """The client of one parsing process, to be used from threads; `command` starts it."""

    def __init__(self, limits: Limits, environ: Mapping[str, str], *, command: Sequence[str] = COMMAND) -> None:
        self._limits = limits
        self._environ = {name: value for name, value in environ.items() if name in _PASSED_VARIABLES}
        self._command = tuple(command)
        self._lock = threading.Lock()
        self._keeps_process = True
        self._is_closed = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the process, which imports its modules while the caller does something else."""
        try:
            self._ensure_process()
        except OSError:
            pass  # the next query tries again

    def parse_fleet(self, content: bytes, file: str) -> Fleet:
        """Returns the fleet that a file describes. Raises ManifestError with every problem."""
        fleet = self._parse(create_query(content, file, self._limits, subject=FLEET)).fleet
        assert fleet is not None
        return fleet

    def parse_keys(self, content: bytes, file: str) -> Mapping[bytes, str]:
        """Returns the names of API keys by digest. Raises ManifestError with every problem."""
        names = self._parse(create_query(content, file, self._limits, subject=KEYS)).names_by_digest
        assert names is not None
        return names

    def parse_tenants(self, content: bytes, file: str) -> Sequence[TenantDocument]:
        """Returns the documents of a tenants file. Raises ManifestError if it has too many."""
        documents = self._parse(create_query(content, file, self._limits, subject=TENANTS)).tenants
        assert documents is not None
        return documents

    def release_process(self) -> None:
        """Ends the process, and from now on each one after its file."""
        self._keeps_process = False
        if self._lock.acquire(blocking=False):
            try:
                self._end_process()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Ends the process; a file that is being parsed fails."""
        self._is_closed = True
        self._end_process()

    def _parse(self, query: FileQuery) -> FileReply:
        with self._lock:
            reply = self._exchange(query)
            if not self._keeps_process:
                self._end_process()
        if reply is None:
            from fairlead_gateway.supervisor.file_parsing.process import parse

            reply = parse(query)
        if reply.problems:
            raise ManifestError(reply.problems)
        return reply

    def _exchange(self, query: FileQuery) -> FileReply | None:
        """Returns the reply of the process; None if there is none."""
        if self._is_closed:
            raise Unavailable("the gateway stops")
        try:
            process = self._ensure_process()
            timer = threading.Timer(_MAX_SECONDS, process.kill)
            timer.start()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(encode_frame(query))
                process.stdin.flush()
                size = int.from_bytes(_receive(process.stdout, LENGTH_BYTES), "big")
                return msgspec.msgpack.decode(_receive(process.stdout, size), type=FileReply)
            finally:
                timer.cancel()
        except (OSError, EOFError, ValueError, msgspec.MsgspecError):
            self._end_process()
        if self._is_closed:
            raise Unavailable("the gateway stops")
        return None

    def _ensure_process(self) -> "subprocess.Popen[bytes]":
        process = self._process
        if process is None or process.poll() is not None:
            self._end_process()
            process = self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # a traceback may hold a digest
                env=self._environ,
            )
        return process

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass  # bytes that the process has not read


def _receive(pipe: IO[bytes], size: int) -> bytes:
    """Returns exactly `size` bytes. Raises EOFError if the pipe ends before."""
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data

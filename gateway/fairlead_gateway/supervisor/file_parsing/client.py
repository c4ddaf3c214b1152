"""The supervisor's client of the parsing process.

At the start of a gateway, one process parses all files. Later, each edit starts one.

If the process cannot be started, ends early or is late, the supervisor parses the file itself. It
then has the parser in memory.
"""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from fairlead.errors import ManifestError, Unavailable
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead.tenants.documents import TenantDocument
from fairlead_gateway.ipc.child_process import ChildProcess
from fairlead_gateway.supervisor.file_parsing.messages import FLEET, KEYS, LIMITS, TENANTS, FileQuery, FileReply

COMMAND: Final = (sys.executable, "-m", "fairlead_gateway.supervisor.file_parsing.process")
_MAX_SECONDS: Final = 60.0  # for one file; the largest takes ten


class FileParser:
    """The client of one parsing process, to be used from threads; `command` starts it."""

    def __init__(self, limits: Limits, environ: Mapping[str, str], *, command: Sequence[str] = COMMAND) -> None:
        self._limits = {name: getattr(limits, name) for name in LIMITS}
        self._child = ChildProcess("parsing", command, environ, reply_seconds=_MAX_SECONDS)

    def start(self) -> None:
        with contextlib.suppress(OSError, EOFError):  # the next query tries again, or says that it is closed
            self._child.start()

    def parse_fleet(self, content: bytes, file: str) -> Fleet:
        """Returns the fleet that a file describes. Raises ManifestError with every problem."""
        fleet = self._parse(FLEET, content, file).fleet
        assert fleet is not None
        return fleet

    def parse_keys(self, content: bytes, file: str) -> Mapping[bytes, str]:
        """Returns the names of API keys by digest. Raises ManifestError with every problem."""
        names = self._parse(KEYS, content, file).names_by_digest
        assert names is not None
        return names

    def parse_tenants(self, content: bytes, file: str) -> Sequence[TenantDocument]:
        """Returns the documents of a tenants file. Raises ManifestError if it has too many."""
        documents = self._parse(TENANTS, content, file).tenants
        assert documents is not None
        return documents

    def release_process(self) -> None:
        self._child.release()

    def close(self) -> None:
        self._child.close()

    def _parse(self, subject: str, content: bytes, file: str) -> FileReply:
        query = FileQuery(subject, file, content, self._limits)
        try:
            reply = self._child.exchange(query, FileReply)
        except (OSError, EOFError, ValueError, msgspec.MsgspecError):
            if self._child.is_closed:
                raise Unavailable("the gateway stops") from None
            from fairlead_gateway.supervisor.file_parsing.process import parse

            reply = parse(query)
        if reply.problems:
            raise ManifestError(reply.problems)
        return reply

"""The parsing process: reads files from its standard input and replies to its standard output.

    python -m fairlead_gateway.supervisor.file_parsing.process

It serves one query after the other, and ends when its input does. It opens no file and no socket.
"""

import signal
import sys
from dataclasses import replace
from typing import BinaryIO

import msgspec

from fairlead.errors import ManifestError
from fairlead.fleet.file.loader import parse_fleet_file
from fairlead.limits import Limits
from fairlead.manifests.yaml_nodes import decode_file
from fairlead.runtime import process_tuning
from fairlead_gateway.supervisor.file_parsing.key_list import parse_key_file
from fairlead_gateway.supervisor.file_parsing.protocol import (
    FLEET,
    LENGTH_BYTES,
    TENANTS,
    FileQuery,
    FileReply,
    encode_frame,
)


def parse(query: FileQuery) -> FileReply:
    """Returns the reply for one file."""
    limits = replace(Limits(), **query.limits)
    try:
        text = decode_file(query.content, file=query.file, limits=limits)
        if query.subject == FLEET:
            return FileReply(fleet=parse_fleet_file(text, file=query.file, limits=limits))
        if query.subject == TENANTS:
            from fairlead_gateway.supervisor.file_parsing.tenant_list import parse_tenant_file

            return FileReply(tenants=parse_tenant_file(text, file=query.file, limits=limits))
        return FileReply(names_by_digest=dict(parse_key_file(text, file=query.file, limits=limits)))
    except ManifestError as error:
        return FileReply(problems=error.problems)


def serve(queries: BinaryIO, replies: BinaryIO) -> None:
    """Replies to queries until the input ends."""
    while True:
        head = queries.read(LENGTH_BYTES)
        payload = queries.read(int.from_bytes(head, "big"))
        if not payload:
            return
        replies.write(encode_frame(parse(msgspec.msgpack.decode(payload, type=FileQuery))))
        replies.flush()


def main() -> None:
    """Runs the process until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all processes; the supervisor decides
    process_tuning.deny_inspection()
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()

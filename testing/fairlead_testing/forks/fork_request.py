"""The request for a fork, on the channel of a fork server."""

import pickle
import socket
from collections.abc import Sequence
from dataclasses import dataclass

LENGTH_BYTES = 8
_MAX_FDS = 250


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """One start of a program.

    argv: the whole command line.
    command: name of the program and its arguments, as `program_command` returns them.
    imports: modules that the server imports before.
    starts_programs: the program starts other programs of the product.
    fds: the numbers that the descriptors get that come with the request.
    """

    argv: tuple[str, ...]
    command: tuple[str, ...]
    imports: tuple[str, ...]
    starts_programs: bool
    environ: dict[bytes, bytes]
    folder: str
    fds: tuple[int, ...]
    ignored_signals: frozenset[int]
    blocked_signals: frozenset[int]
    file_limits: tuple[int, int]
    new_session: bool
    process_group: int


def send_request(channel: socket.socket, request: ForkRequest, fds: Sequence[int]) -> int:
    """Returns the process id of a fork; a negative error number if the server cannot fork.

    After any exception, the channel is of no more use.
    """
    data = pickle.dumps(request)
    header = len(data).to_bytes(LENGTH_BYTES, "big")
    socket.send_fds(channel, [header], fds)
    channel.sendall(data)
    return int.from_bytes(_receive(channel, LENGTH_BYTES), "big", signed=True)


def receive_request(channel: socket.socket) -> tuple[ForkRequest, list[int]]:
    """Returns the next request, and its descriptors. Raises EOFError when the channel closes."""
    header, fds, _, _ = socket.recv_fds(channel, LENGTH_BYTES, _MAX_FDS)
    header += _receive(channel, LENGTH_BYTES - len(header))
    request = pickle.loads(_receive(channel, int.from_bytes(header, "big")))
    assert isinstance(request, ForkRequest)
    return request, fds


def _receive(channel: socket.socket, size: int) -> bytes:
    """Returns exactly `size` bytes. Raises EOFError if the channel ends before."""
    data = bytearray()
    while len(data) < size:
        try:
            part = channel.recv(size - len(data))
        except ConnectionResetError:
            part = b""
        if not part:
            raise EOFError
        data += part
    return bytes(data)

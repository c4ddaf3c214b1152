"""A small HTTP response that two decompressions turn into two gibibytes, and its server."""

import contextlib
import socket
import threading
import zlib
from collections.abc import Iterator

MEBIBYTE = 1024 * 1024
UNPACKED_BYTES = 2048 * MEBIBYTE
_TIMEOUT_SECONDS = 10.0


@contextlib.contextmanager
def one_response_server(response: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Runs a server that sends `response` to one connection; yields its URL and the request."""
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    requests.append(connection.recv(65_536))
                    connection.sendall(response)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
    thread.join(_TIMEOUT_SECONDS)


def nested_gzip_bomb() -> bytes:
    """Returns some kilobytes that two decompressions turn into `UNPACKED_BYTES`."""
    inner = _repeat(bytes(MEBIBYTE), UNPACKED_BYTES // MEBIBYTE)
    packer = zlib.compressobj(9, wbits=31)
    bomb = packer.compress(inner) + packer.flush()
    assert len(bomb) < 65_536 < MEBIBYTE < len(inner), "the bomb is not one"
    return bomb


def nested_gzip_response() -> bytes:
    """Returns a response of status 200 whose body is the bomb."""
    bomb = nested_gzip_bomb()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip, gzip\r\n"
    return head + b"content-length: %d\r\n\r\n%b" % (len(bomb), bomb)


def _repeat(data: bytes, times: int) -> bytes:
    """Returns a gzip member of `data`, repeated; its checksum is not right, which shows last."""
    packer = zlib.compressobj(9, wbits=31)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * times + packer.flush()

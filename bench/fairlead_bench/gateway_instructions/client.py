"""A client with one connection that is kept. It reads exactly as far as the script wants."""

import socket

from fairlead_bench.gateway_instructions.scripted_engine import content_length

_READ_SECONDS = 60.0


class WrongAnswer(Exception):
    """Raised where the gateway's answer is not what the script expects."""


class Client:
    """Sends bodies to ``/v1/chat/completions`` of the gateway at ``port``."""

    def __init__(self, port: int, key: str) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=_READ_SECONDS)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
            "content-type: application/json\r\naccept: */*\r\ncontent-length: "
        )
        self._received = b""

    def send(self, body: bytes) -> None:
        """Sends one request, head and body at once."""
        self._connection.sendall(f"{self._head}{len(body)}\r\n\r\n".encode() + body)

    def read_answer(self) -> None:
        """Reads a plain answer. Raises WrongAnswer unless it is a good one."""
        head = self._read_head()
        length = content_length(head)
        while len(self._received) < length:
            self._receive()
        self._received = self._received[length:]

    def begin_stream(self) -> None:
        """Reads a stream's head and its first event. Raises WrongAnswer unless it is a good one."""
        self._read_head()
        self.read_event()

    def read_event(self) -> None:
        """Reads one event of a stream."""
        self._read_until(b"\n\n")

    def read_end(self) -> None:
        """Reads the rest of a stream."""
        self._read_until(b"data: [DONE]\n\n")
        self._read_until(b"0\r\n\r\n")

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def _read_head(self) -> str:
        head = self._read_until(b"\r\n\r\n").decode("latin-1")
        if " 200 " not in head.split("\r\n", 1)[0]:
            raise WrongAnswer(f"{head}{self._received!r}")
        return head

    def _read_until(self, end: bytes) -> bytes:
        while end not in self._received:
            self._receive()
        found, _, self._received = self._received.partition(end)
        return found

    def _receive(self) -> None:
        more = self._connection.recv(65_536)
        if not more:
            raise WrongAnswer("the gateway closed the connection")
        self._received += more

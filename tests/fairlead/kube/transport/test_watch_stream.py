"""The beginning of a watch, and its end: nothing of it stays open, whatever the server does."""

import gc
import socket
import ssl
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from fairlead.kube.transport.watch_stream import WatchTransport
from fairlead_testing.http.certificates import CertificateAuthority, has_openssl

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"


class TrustingCredentials:
    """Credentials that trust one authority."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self._authority = authority

    def tls_context(self) -> ssl.SSLContext:
        return self._authority.client_context()


@pytest.mark.skipif(not has_openssl(), reason="certificates are made with the openssl command: it is not there")
async def test_abandoned_watch_leaves_no_connection(
    tmp_path: Path,
) -> None:
    authority = CertificateAuthority(tmp_path)
    secure = authority.issue("here").server_context()
    over = threading.Event()

    def serve() -> None:
        plain, _ = listening.accept()
        with secure.wrap_socket(plain, server_side=True) as client:
            client.recv(65_536)
            client.sendall(HEAD)
            over.wait(60.0)

    async def main() -> None:
        feed = WatchTransport(f"https://127.0.0.1:{port}", cast("Any", TrustingCredentials(authority)), None, 5.0)
        async with await feed.open("/watch", ()) as opened:
            assert await anext(opened.iter_bytes()) == b"hello"
        await feed.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            await main()
            gc.collect()  # open connections would warn here
        finally:
            over.set()
            thread.join()

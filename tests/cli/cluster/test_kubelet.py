"""The kubelet of the tests: it leaves nothing open that a later test would be blamed for."""

import gc
import socket
import ssl
from pathlib import Path

import pytest

from fairlead_testing.collected_errors import collected_errors
from fairlead_testing.kube.kubelet import Kubelet

REQUEST = (
    "GET /portForward/ns/pod?port=80 HTTP/1.1",
    "Host: kubelet",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Protocol: v4.channel.k8s.io",
    "\r\n",
)


def unverified_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_kubelet_that_ends_leaves_no_forwarded_connection_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = collected_errors(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as target:
        with Kubelet(tmp_path, {("pod", 80): target.getsockname()[1]}) as kubelet:
            raw = socket.create_connection(("127.0.0.1", kubelet.port))
            client = unverified_context().wrap_socket(raw)
            client.sendall("\r\n".join(REQUEST).encode())
            forwarded, _ = target.accept()
            assert client.recv(16).startswith(b"HTTP/1.1 101")
        with client, forwarded:
            assert forwarded.recv(1) == b""
    gc.collect()
    assert found == []


def test_kubelet_that_ends_leaves_no_handshake_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = collected_errors(monkeypatch)
    with Kubelet(tmp_path, {}) as kubelet, unverified_context().wrap_socket(socket.socket()) as connected:
        connected.connect(("127.0.0.1", kubelet.port))
        silent = socket.create_connection(("127.0.0.1", kubelet.port))
        with unverified_context().wrap_socket(socket.create_connection(("127.0.0.1", kubelet.port))):
            pass  # the server has accepted the silent connection before this one
    silent.close()
    gc.collect()
    assert found == []

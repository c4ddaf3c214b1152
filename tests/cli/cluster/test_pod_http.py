"""Queries to pods through the API server's proxy; a refusal of the pod is not a refusal of the
proxy.
"""

import asyncio
import gc
import json
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.transport.kubeconfig import ClusterConfig
from fairlead.runtime.clock import SystemClock
from fairlead_cli.cluster.access.connection import CLI_LIMITS
from fairlead_cli.cluster.object_fields import MissingValue
from fairlead_cli.cluster.pod_http import MetricsPage, PodReport, Readiness, pod_port, query_component, query_gateway
from fairlead_testing.collected_errors import collected_errors
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer
from fairlead_testing.kube.kubelet import Kubelet

AT = "/api/v1/namespaces/fairlead/pods/g:8081/proxy"
POD: dict[str, Any] = {
    "metadata": {"name": "g", "namespace": "fairlead"},
    "spec": {
        "containers": [{"ports": [{"name": "http", "containerPort": 8080}, {"name": "manage", "containerPort": 8081}]}]
    },
    "status": {"podIP": "10.0.0.1"},
}


def answer_of(status: int, body: Any) -> CannedResponse:
    return CannedResponse([body if isinstance(body, bytes) else json.dumps(body).encode()], status)


def refusal(code: int, message: str) -> CannedResponse:
    return answer_of(code, {"kind": "Status", "code": code, "message": message})


def pod_reported(
    answers: dict[str, CannedResponse], pod: dict[str, Any] = POD, ask: Any = query_gateway
) -> tuple[PodReport, CannedServer]:
    async def main(server: CannedServer) -> PodReport:
        access = ClusterConfig(server=server.url, source="a test")
        async with KubeApi(access, SystemClock(), lambda: 0.5, limits=CLI_LIMITS) as api:
            report: PodReport = await ask(api, pod)
            return report

    with CannedServer(answers) as server:
        return asyncio.run(main(server)), server


def test_readiness_and_metrics() -> None:
    report, _ = pod_reported(
        {f"{AT}/readyz": answer_of(200, {"ready": True, "notes": ["x"]}), f"{AT}/metrics": answer_of(200, b"a 1\n")}
    )
    assert report.readiness == Readiness(True, ["x"])
    assert isinstance(report.metrics, MetricsPage)
    assert report.metrics.value("a") == 1.0


def test_pod_that_is_not_ready_reports_its_notes() -> None:
    report, _ = pod_reported(
        {
            f"{AT}/readyz": answer_of(503, {"ready": False, "notes": ["no fleet has been read yet"]}),
            f"{AT}/metrics": answer_of(200, b""),
        }
    )
    assert report.readiness == Readiness(False, ["no fleet has been read yet"])


def test_operator_readiness_is_plain_text() -> None:
    where = AT.replace("8081", "8080")
    report, _ = pod_reported(
        {
            f"{where}/readyz": answer_of(503, b"not everything has been listed yet\n"),
            f"{where}/metrics": answer_of(200, b""),
        },
        ask=query_component,
    )
    assert report.readiness == Readiness(False, ["not everything has been listed yet"])


@pytest.mark.parametrize(
    ("answer", "why", "forbidden"),
    [
        (refusal(403, "pods g is forbidden"), "you may not get pods/proxy in fairlead", True),
        (
            refusal(503, "error trying to reach service: dial tcp 10.0.0.1:8081: i/o timeout"),
            "a NetworkPolicy may keep",
            False,
        ),
        (
            answer_of(503, b"error trying to reach service: dial tcp: connect: connection refused"),
            "connection refused",
            False,
        ),
        (refusal(404, 'pods "g" not found'), 'pods "g" not found', False),
    ],
)
def test_unreachable_pod_has_a_reason_and_one_attempt(answer: CannedResponse, why: str, forbidden: bool) -> None:
    report, server = pod_reported({f"{AT}/readyz": answer})
    assert isinstance(report.readiness, MissingValue)
    assert why in report.readiness.reason
    assert report.readiness.is_forbidden is forbidden
    assert report.metrics == report.readiness
    assert len(server.requests) == 1


def test_host_check_of_a_pod_is_retried_with_a_known_host() -> None:
    report, server = pod_reported(
        {f"{AT}/readyz": answer_of(403, {"error": {"message": "this host name is not served here"}})}
    )
    assert [request.headers.get("Host") for request in server.requests[:2]] == [
        server.url.removeprefix("http://"),
        "gateway.localhost",
    ]
    assert report.readiness == MissingValue("/readyz answers 403 with something else than readiness")


def test_pod_without_an_address_is_not_queried() -> None:
    report, server = pod_reported({}, {**POD, "status": {}})
    assert report.readiness == MissingValue("pod g has no address yet")
    assert server.requests == []


def test_ports_are_found_by_name() -> None:
    assert (pod_port(POD, "manage", 1), pod_port(POD, "other", 1), pod_port({}, "manage", 1)) == (8081, 1, 1)


async def test_long_answer_is_cut_and_any_status_accepted() -> None:
    async def main(server: CannedServer) -> None:
        async with KubeApi(ClusterConfig(server=server.url, source="a test"), SystemClock(), lambda: 0.5) as api:
            response = await api.get_raw("/long", 4, 5.0)
            assert (response.status, response.body, response.truncated) == (200, b"0123", True)
            assert (await api.get_raw("/none", 4, 5.0)).status == 404
            assert server.requests[0].path == "/long"
            assert (await api.get_raw("/long", 40, 5.0, query={"tailLines": "3"})).truncated is False

    with CannedServer({"/long": CannedResponse([b"0123456789"])}) as server:
        await main(server)


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
    errors = collected_errors(monkeypatch)
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
    assert errors == []


def test_kubelet_that_ends_leaves_no_handshake_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = collected_errors(monkeypatch)
    with Kubelet(tmp_path, {}) as kubelet, unverified_context().wrap_socket(socket.socket()) as connected:
        connected.connect(("127.0.0.1", kubelet.port))
        silent = socket.create_connection(("127.0.0.1", kubelet.port))
        with unverified_context().wrap_socket(socket.create_connection(("127.0.0.1", kubelet.port))):
            pass  # the server has accepted the silent connection before this one
    silent.close()
    gc.collect()
    assert errors == []

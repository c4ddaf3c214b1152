"""Queries to pods over forwarded ports."""

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
from fairlead_cli.cluster import pod_http
from fairlead_cli.cluster.access.connection import CLI_LIMITS
from fairlead_cli.cluster.object_fields import MissingValue
from fairlead_cli.cluster.pod_http import MetricsPage, PodReport, Readiness, pod_port, query_component, query_gateway
from fairlead_testing.collected_errors import collected_errors
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer
from fairlead_testing.kube.kubelet import Kubelet

POD: dict[str, Any] = {
    "metadata": {"name": "g", "namespace": "fairlead"},
    "spec": {
        "containers": [{"ports": [{"name": "http", "containerPort": 8080}, {"name": "manage", "containerPort": 8081}]}]
    },
    "status": {"podIP": "10.0.0.1"},
}


def answer_of(status: int, body: Any) -> CannedResponse:
    return CannedResponse([body if isinstance(body, bytes) else json.dumps(body).encode()], status)


def pod_reported(
    folder: Path, answers: dict[str, CannedResponse] | None, pod: dict[str, Any] = POD, ask: Any = query_gateway
) -> tuple[PodReport, list[tuple[str, int]]]:
    """Returns the report, and the ports that were forwarded. answers: None if nothing listens."""

    async def main(url: str) -> PodReport:
        access = ClusterConfig(server=url, source="a test", verify_tls=False)
        async with KubeApi(access, SystemClock(), lambda: 0.5, limits=CLI_LIMITS) as api:
            report: PodReport = await ask(api, pod)
            return report

    with CannedServer(answers or {}) as server:
        port = int(server.url.rpartition(":")[2])
        targets = {} if answers is None else {("g", 8080): port, ("g", 8081): port}
        with Kubelet(folder, targets) as kubelet:
            return asyncio.run(main(f"https://127.0.0.1:{kubelet.port}")), kubelet.forwarded


def test_readiness_and_metrics(tmp_path: Path) -> None:
    pages = {"/readyz": answer_of(200, {"ready": True, "notes": ["x"]}), "/metrics": answer_of(200, b"a 1\n")}
    report, forwarded = pod_reported(tmp_path, pages)
    assert report.readiness == Readiness(True, ["x"])
    assert isinstance(report.metrics, MetricsPage)
    assert report.metrics.value("a") == 1.0
    assert set(forwarded) == {("g", 8081)}


def test_pod_that_is_not_ready_reports_its_notes(tmp_path: Path) -> None:
    notes = {"ready": False, "notes": ["no fleet has been read yet"]}
    report, _ = pod_reported(tmp_path, {"/readyz": answer_of(503, notes), "/metrics": answer_of(200, b"")})
    assert report.readiness == Readiness(False, ["no fleet has been read yet"])


def test_operator_readiness_is_plain_text(tmp_path: Path) -> None:
    pages = {"/readyz": answer_of(503, b"not everything has been listed yet\n"), "/metrics": answer_of(200, b"")}
    report, forwarded = pod_reported(tmp_path, pages, ask=query_component)
    assert report.readiness == Readiness(False, ["not everything has been listed yet"])
    assert set(forwarded) == {("g", 8080)}


def test_page_of_another_program_is_no_readiness(tmp_path: Path) -> None:
    report, _ = pod_reported(tmp_path, {"/readyz": answer_of(403, {"error": {"message": "who are you?"}})})
    assert report.readiness == MissingValue("/readyz answers 403 with something else than readiness")
    assert report.metrics == MissingValue("/metrics answers 404")


def test_long_page_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_http, "MAX_PAGE_BYTES", 40)
    pages = {"/readyz": answer_of(200, {"ready": True, "notes": []}), "/metrics": answer_of(200, b"a 1\n" * 20)}
    report, _ = pod_reported(tmp_path, pages)
    assert report == PodReport("g", "fairlead", Readiness(True, []), MissingValue("/metrics is too long"))


def test_pod_that_does_not_listen_is_no_pod_without_answers(tmp_path: Path) -> None:
    report, forwarded = pod_reported(tmp_path, None)
    assert report.readiness == MissingValue("port 8081 of pod fairlead/g: nothing listens on port 8081 of g")
    assert report.metrics == report.readiness
    assert set(forwarded) == {("g", 8081)}


@pytest.mark.parametrize(
    ("status", "why", "forbidden"),
    [
        (403, "you may not forward ports of pods in fairlead", True),
        (404, "the API server does not forward port 8081 of pod fairlead/g: it does not exist", False),
        (502, "the API server does not forward port 8081 of pod fairlead/g: status 502", False),
    ],
)
def test_refusal_of_the_api_server_is_a_reason(status: int, why: str, forbidden: bool) -> None:
    async def main(server: CannedServer) -> PodReport:
        access = ClusterConfig(server=server.url, source="a test")
        async with KubeApi(access, SystemClock(), lambda: 0.5, limits=CLI_LIMITS) as api:
            return await query_gateway(api, POD)

    path = "/api/v1/namespaces/fairlead/pods/g/portforward"
    with CannedServer({path: answer_of(status, {"kind": "Status", "code": status})}) as server:
        report = asyncio.run(main(server))
    assert report.readiness == report.metrics == MissingValue(why, is_forbidden=forbidden)
    assert len(server.requests) == 1


def test_node_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_http, "TIMEOUT_SECONDS", 0.05)

    async def main() -> PodReport:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            access = ClusterConfig(server=f"http://127.0.0.1:{silent.getsockname()[1]}", source="a test")
            async with KubeApi(access, SystemClock(), lambda: 0.5, limits=CLI_LIMITS) as api:
                return await query_gateway(api, POD)

    report = asyncio.run(main())
    assert report.readiness == report.metrics == MissingValue("pod g says nothing for 0 s")


def test_pod_without_an_address_is_not_queried(tmp_path: Path) -> None:
    report, forwarded = pod_reported(tmp_path, {}, {**POD, "status": {}})
    assert report.readiness == report.metrics == MissingValue("pod g has no address yet")
    assert forwarded == []


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

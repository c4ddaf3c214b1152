"""Reads the management ports of gateways: which pods, within which limits, and what is missing."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from fairlead.errors import Unavailable
from fairlead.fleet.hung_engines import EjectionReport
from fairlead.kube.resources import PODS, Manifest
from fairlead_operator.hung_engines import gateway_reports
from fairlead_operator.hung_engines.gateway_reports import (
    GatewayReader,
    GatewayReport,
    InstanceReport,
    management_url,
    parse_fleet,
)
from fairlead_operator.render.context import AllowedPeer
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer
from fairlead_testing.kube.in_memory import InMemoryKube
from fairlead_testing.kube.manifests import manifest

LABELS = {"app.kubernetes.io/component": "gateway"}
GATEWAYS = AllowedPeer("fairlead", LABELS)
EJECTION = {"seconds": 75.5, "cause": "3 timeouts", "failed_probes": 2, "workers": 1}


def fleet(*instances: dict[str, Any]) -> bytes:
    return json.dumps({"version": 3, "models": [{"key": "a/m", "instances": list(instances)}]}).encode()


def gateway_pod(
    name: str = "gateway-a", port: int = 8081, *, ready: bool = True, address: str = "127.0.0.1", **more: Any
) -> Manifest:
    ports = [{"name": "http", "containerPort": 8080}, {"name": "manage", "containerPort": port}]
    spec = {"containers": [{"name": "gateway", "ports": ports}]}
    status = {"podIP": address, "conditions": [{"type": "Ready", "status": str(ready)}]}
    return manifest(PODS, name, "fairlead", {"labels": LABELS, **more}, spec=spec, status=status)


def read(*pods: Manifest, token: str | None = None, **limits: Any) -> list[GatewayReport]:
    kube = InMemoryKube()
    for pod in pods:
        kube.put(pod)
    return asyncio.run(GatewayReader(kube, GATEWAYS, token, **limits).read())


def test_fleet_page_gives_ejections_and_ages_of_answers() -> None:
    instances = parse_fleet(
        fleet(
            {"id": "u/8000/0", "state": "Ready", "ejection": EJECTION, "answer_age_seconds": 80.0},
            {"id": "v/8000/0", "ejection": None, "answer_age_seconds": 0.5},
            {"id": "w/8000/0"},
        )
    )
    assert instances == (
        InstanceReport("u/8000/0", EjectionReport(75.5, "3 timeouts", 2, 1), 80.0),
        InstanceReport("v/8000/0", None, 0.5),
        InstanceReport("w/8000/0", msgspec.UNSET, None),
    )


DEEP = b'{"x":' + b"[" * 100_000


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"<html>", b'{"models": [{"instances": [{"ejection": null}]}]}', b"\xff", DEEP]
)
def test_other_pages_are_no_report(body: bytes) -> None:
    with pytest.raises(Unavailable, match="cannot be read"):
        parse_fleet(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"models":[' + b",".join([b"{}"] * 300_000) + b"]}",
        b'{"models":[{"instances":[' + b",".join([b'{"id":""}'] * 8_193) + b"]}]}",
    ],
    ids=["models", "instances"],
)
def test_report_with_more_objects_than_a_fleet_is_none(body: bytes) -> None:
    with pytest.raises(Unavailable, match="its answer has more than"):
        parse_fleet(body)


def test_report_with_a_million_objects_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Decoder:
        def decode(self, body: bytes) -> None:
            pytest.fail("it is decoded, for seconds in which the operator loses its Lease")

    monkeypatch.setattr(gateway_reports, "_FLEET_DECODER", Decoder())
    with pytest.raises(Unavailable, match="objects"):
        parse_fleet(b'{"models":[' + b",".join([b"{}"] * 1_000_000) + b"]}")


def test_only_ready_gateway_pods_with_an_address_are_read() -> None:
    assert management_url(gateway_pod(port=9000)) == "http://127.0.0.1:9000"
    assert management_url(gateway_pod(address="fd00::1")) == "http://[fd00::1]:8081"
    assert management_url({**gateway_pod(), "spec": {"containers": [{"name": "gateway"}]}}) == "http://127.0.0.1:8081"
    assert management_url(gateway_pod(ready=False)) is None
    assert management_url(gateway_pod(address="")) is None
    assert management_url(gateway_pod(deletionTimestamp="2026-01-01T00:00:00Z")) is None


def test_reader_sends_its_token_and_accepts_no_compression() -> None:
    page = CannedResponse((fleet({"id": "u/1/0", "ejection": EJECTION}),))
    with CannedServer({"/api/fleet": page}) as server:
        (report,) = read(gateway_pod(port=int(server.url.rpartition(":")[2])), token="s3cret")
        (request,) = server.requests
    assert report == GatewayReport("gateway-a", (InstanceReport("u/1/0", EjectionReport(75.5, "3 timeouts", 2, 1)),))
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert headers["authorization"] == "Bearer s3cret"
    assert headers["accept-encoding"] == "identity"


def test_gateway_that_refuses_or_sends_too_much_is_missing_and_others_are_read() -> None:
    good, large = fleet({"id": "u/1/0", "ejection": None}), fleet(*[{"id": f"{number}"} for number in range(200)])
    with (
        CannedServer({"/api/fleet": CannedResponse((good,))}) as first,
        CannedServer({"/api/fleet": CannedResponse((large,))}) as second,
        CannedServer({"/api/fleet": CannedResponse((good,), 401)}) as third,
    ):
        ports = [int(server.url.rpartition(":")[2]) for server in (first, second, third)]
        pods = [gateway_pod(f"gateway-{number}", port) for number, port in enumerate(ports)]
        reports = read(*pods, max_bytes=1_000, max_reads=1)
        (only,) = read(*pods, max_gateways=1)
    assert [report.error for report in reports] == ["", "the answer is longer than 1000 bytes", "answered 401"]
    assert reports[0].instances == (InstanceReport("u/1/0", None),)
    assert only.name == "gateway-0"

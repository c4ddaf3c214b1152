"""Engines that hang, on a real API server: pods are marked and deleted as two gateways report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fairlead.kube.conditions import find_condition
from fairlead.kube.errors import NotFound
from fairlead.kube.resources import EVENTS, PODS, Manifest, uid_of
from fairlead_bench.operator.fault_trials import TrialCluster, open_cluster
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer
from fairlead_testing.kube.api_server import ApiServer

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
FREQUENT_ROUNDS = """
from functools import partial
from fairlead_operator import __main__, manager
manager.RestartOptions = partial(manager.RestartOptions, poll_seconds=1.0)
raise SystemExit(__main__.main())
"""
"""The operator, which reads its gateways every second, not every 15."""
GATEWAY = {"app.kubernetes.io/component": "gateway"}
MODEL = {"app.kubernetes.io/managed-by": "fairlead", "fairlead.io/model": "qwen", "fairlead.io/pool": "main"}


async def create_pod(here: TrialCluster, name: str, labels: Mapping[str, str], *, port: int = 8000) -> Manifest:
    """Creates a ready pod."""
    container = {"name": "main", "image": "a", "ports": [{"name": "manage", "containerPort": port}]}
    metadata = {"name": name, "namespace": here.namespace, "labels": dict(labels)}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}
    created = await here.api.apply(pod, "test")
    address = {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
    status = {"phase": "Running", **address, "conditions": [{"type": "Ready", "status": "True"}]}
    await here.api.patch_merge(PODS, here.namespace, name, {"status": status}, "kubelet", subresource="status")
    return created


async def create_engine(here: TrialCluster, name: str) -> Manifest:
    return await create_pod(here, name, {**MODEL, "fairlead.io/endpoint": "true"})


def fleet(pod: Manifest, ejection: dict[str, Any] | None) -> CannedResponse:
    instance = {"id": f"{uid_of(pod)}/8000/0", "ejection": ejection, "answer_age_seconds": None}
    return CannedResponse((json.dumps({"models": [{"instances": [instance]}]}).encode(),))


def ejected(failed_probes: int = 0) -> dict[str, Any]:
    return {"seconds": 90.0, "cause": "3 timeouts", "failed_probes": failed_probes, "workers": 1}


async def condition(here: TrialCluster, name: str) -> Mapping[str, Any]:
    pod = await here.api.get(PODS, here.namespace, name)
    return find_condition(pod["status"], "fairlead.io/Serving") or {}


async def exists(here: TrialCluster, name: str) -> bool:
    try:
        await here.api.get(PODS, here.namespace, name)
    except NotFound:
        return False
    return True


async def test_pod_that_hangs_is_marked_and_deleted_once(api_server: ApiServer, tmp_path: Path) -> None:
    variables = {"management_pods": "hung/app.kubernetes.io/component=gateway"}
    variables |= {"hung_restart": "0s", "manage_token": "s3cret"}
    with CannedServer({}) as first, CannedServer({}) as second:
        async with open_cluster(api_server, "hung", tmp_path, **variables) as here:
            servers = first, second
            await here.model("qwen")
            for number, server in enumerate(servers):
                port = int(server.url.rpartition(":")[2])
                await create_pod(here, f"gateway-{number}", GATEWAY, port=port)
            pod = await create_engine(here, "one")
            await create_engine(here, "two")
            for server in servers:
                server.responses["/api/fleet"] = fleet(pod, ejected())
            marks: list[Mapping[str, Any]] = []

            async def is_gone() -> bool:
                try:
                    marks.append(await condition(here, "one"))
                except NotFound:
                    return True
                return False

            operator = here.operators.start(command=("-c", FREQUENT_ROUNDS))
            await here.until(is_gone, "the pod is deleted")
            (mark,) = {json.dumps(mark, sort_keys=True) for mark in marks if mark}
            assert json.loads(mark)["status"] == "False"
            assert json.loads(mark)["reason"] == "EngineHung"
            assert "reported by gateway-0, gateway-1" in json.loads(mark)["message"]

            await create_engine(here, "three")  # its workload replaces it, and gateways are late
            rounds = len(servers[0].requests)

            async def is_polled_again() -> bool:
                return len(servers[0].requests) >= rounds + 2

            await here.until(is_polled_again, "the gateways are read twice more")
            assert await exists(here, "two")
            assert await exists(here, "three")
            assert await condition(here, "three") == {}
            assert here.operators.metrics(operator)["engine_restarts_total"] == 1
            assert servers[0].requests[0].headers["authorization"] == "Bearer s3cret"

            async def is_reported() -> bool:
                reasons = {event["reason"] for event in (await here.api.list(EVENTS, here.namespace)).items}
                return {"EngineHung", "EngineRestarted"} <= reasons

            await here.until(is_reported, "events report both")

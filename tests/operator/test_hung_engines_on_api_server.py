"""Engines that hang, on a real API server: pods are marked and deleted as two gateways report."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fairlead.kube.conditions import find_condition
from fairlead.kube.errors import NotFound
from fairlead.kube.events.event import EventDraft
from fairlead.kube.resources import EVENTS, MODEL_DEPLOYMENTS, PODS, Manifest, uid_of
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead.runtime.clock import Pacing, SystemClock
from fairlead_bench.operator.fault_trials import TrialCluster, open_cluster
from fairlead_operator.hung_engines.engine_restarter import EngineRestarter, RestartOptions
from fairlead_operator.hung_engines.gateway_reports import GatewayReader
from fairlead_operator.kube.object_cache import ObjectCache
from fairlead_operator.render.context import AllowedPeer
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


def run_with_gateways(
    api_server: ApiServer,
    namespace: str,
    logs: Path,
    check: Callable[[TrialCluster, tuple[CannedServer, CannedServer]], Awaitable[None]],
) -> None:
    """Runs `check` with a model and two ready gateways, whose management ports have no page yet."""

    async def main(servers: tuple[CannedServer, CannedServer]) -> None:
        variables = {"management_pods": f"{namespace}/app.kubernetes.io/component=gateway"}
        variables |= {"hung_restart": "0s", "manage_token": "s3cret"}
        async with open_cluster(api_server, namespace, logs, **variables) as here:
            await here.model("qwen")
            for number, server in enumerate(servers):
                port = int(server.url.rpartition(":")[2])
                await create_pod(here, f"gateway-{number}", GATEWAY, port=port)
            await check(here, servers)

    with CannedServer({}) as first, CannedServer({}) as second:
        asyncio.run(main((first, second)))


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


def test_pod_that_hangs_is_marked_and_deleted_once(api_server: ApiServer, tmp_path: Path) -> None:
    async def check(here: TrialCluster, servers: tuple[CannedServer, CannedServer]) -> None:
        one = await create_engine(here, "one")
        await create_engine(here, "two")
        for server in servers:
            server.responses["/api/fleet"] = fleet(one, ejected())
        marks: list[Mapping[str, Any]] = []

        async def is_gone() -> bool:
            try:
                marks.append(await condition(here, "one"))
            except NotFound:
                return True
            return False

        operator = here.operators.start(command=("-c", FREQUENT_ROUNDS))
        await here.until(is_gone, "the pod is deleted")
        (mark,) = {json.dumps(found, sort_keys=True) for found in marks if found}
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

    run_with_gateways(api_server, "hung", tmp_path, check)


class Host:
    """A leader with a fresh cache, which keeps events."""

    def __init__(self) -> None:
        self.is_leading = True
        self.events: list[EventDraft] = []

    def stale_cache_reason(self) -> str:
        return ""

    def record_event(self, model: Manifest, event: EventDraft) -> None:
        self.events.append(event)


def test_one_gateway_of_two_without_probes_has_no_effect(api_server: ApiServer, tmp_path: Path) -> None:
    async def check(here: TrialCluster, servers: tuple[CannedServer, CannedServer]) -> None:
        one = await create_engine(here, "one")
        host, cache, clock = Host(), ObjectCache(), SystemClock()
        cache.replace_models((await here.api.list(MODEL_DEPLOYMENTS, here.namespace)).items)
        for pod in (await here.api.list(PODS, here.namespace)).items:
            cache.apply(WatchEvent(WatchEventType.ADDED, pod))
        restarter = EngineRestarter(
            here.api,
            cache,
            GatewayReader(here.api, AllowedPeer(here.namespace, GATEWAY), None),
            host,
            Pacing(clock, lambda: 0.5),
            RestartOptions(60.0, 0.0),
        )
        servers[0].responses["/api/fleet"] = fleet(one, ejected())
        for other in (fleet(one, None), CannedResponse((b"{}",), 401), CannedResponse((b"nonsense",))):
            servers[1].responses["/api/fleet"] = other
            await restarter.run_once()
        assert len(servers[0].requests) == len(servers[1].requests) == 3
        assert (await condition(here, "one"), host.events) == ({}, [])
        servers[0].responses["/api/fleet"] = fleet(one, ejected(failed_probes=2))
        await restarter.run_once()
        assert (await condition(here, "one"))["status"] == "False"
        assert await exists(here, "one"), "it was marked just now"

    run_with_gateways(api_server, "probes", tmp_path, check)

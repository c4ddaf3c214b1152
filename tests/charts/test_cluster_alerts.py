"""Alerts on recordings of a real operator, and of a gateway in front of a real API server.

The faults are those of docs/reference/checks.md. No pods run: the test writes the states that a
kubelet or a scheduler would report.
"""

import asyncio
import copy
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.resources import DEPLOYMENTS, LEASES, MODEL_DEPLOYMENTS, PODS, Manifest
from fairlead.runtime.clock import SystemClock
from fairlead_testing.engines.disaggregated import engine_process
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.http.raw_client import request
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.helm import (
    CHART_FOLDER,
    apply_crds,
    apply_namespace,
    apply_rights,
    kubeconfig_for_account,
    render_chart,
)
from fairlead_testing.kube.manifests import manifest, simulated_model
from fairlead_testing.kube.operator_process import OperatorProcess, operator_process
from fairlead_testing.prometheus import AlertRules, Scrape, SeriesRecording, expression_names, parse_scrape
from fairlead_testing.waiting import wait_until
from fairlead_testing.yaml_documents import load_document

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
HEALTHY: dict[str, str] = load_document((Path(__file__).parent / "alerts.yaml").read_text())["healthy"]
SPACE = "alerted"
Firing = Callable[..., None]


@pytest.fixture
def fires(rules: AlertRules) -> Firing:
    """Asserts that exactly these alerts fire on a recording, completed by healthy components."""

    def call(recording: SeriesRecording, *expected: str, lacking: str = "", label: str = "alertname") -> None:
        names = {name for rule in rules.alerts.values() for name, _ in expression_names(rule["expr"]).metrics}
        others = {
            key.replace("{", '{namespace="fairlead",'): value
            for key, value in HEALTHY.items()
            if "_indexer_" in key or "_autoscaler_" in key or (lacking and lacking in key)
        }
        rules.expect_firing({"recorded": (recording.series(names) | others, recording.minutes, expected)}, label)

    return call


@asynccontextmanager
async def client_in_namespace(server: ApiServer) -> AsyncIterator[KubeApi]:
    """A client, with Fairlead's kinds and a namespace without the models of other tests."""
    async with KubeApi(server.config(), SystemClock(), lambda: 0.5) as api:
        await apply_crds(api)
        await apply_namespace(api, SPACE)
        for leftover in (await api.list(MODEL_DEPLOYMENTS, SPACE)).items:
            await api.delete(MODEL_DEPLOYMENTS, SPACE, leftover["metadata"]["name"])
        await api.delete(LEASES, SPACE, "fairlead-operator")  # of an operator that was killed
        yield api


def operator_of(server: ApiServer, folder: Path, kubeconfig: Path | None = None) -> Any:
    options = ("--lease-namespace", SPACE)
    return operator_process(
        kubeconfig or server.kubeconfig, folder / "operator.log", *options, watch_namespaces=SPACE, lease="6s"
    )


async def scrape(operator: OperatorProcess) -> Scrape:
    return parse_scrape(await operator.get("/metrics"), namespace="fairlead", pod="o-1")


async def scrape_gateway(gateway: GatewayProcess) -> Scrape:
    return parse_scrape((await gateway.get("/metrics")).body.decode(), namespace="fairlead", pod="g-1")


async def wait_until_reported(operator: OperatorProcess, *pieces: str) -> None:
    """Wait until its metrics hold each of these."""

    async def tells() -> bool:
        text = await operator.get("/metrics")
        return all(piece in text for piece in pieces)

    await wait_until(tells)


def condition(model: str, type: str, reason: str, value: int) -> str:
    labels = f'model="{SPACE}/{model}",reason="{reason}",type="{type}"'
    return f"fairlead_operator_model_condition{{{labels}}} {value:.1f}"


def model(name: str, accelerator: str = "cpu") -> Manifest:
    return simulated_model(name, SPACE, pools=[{"name": "main", "acceleratorClassName": accelerator}])


async def deployment(api: KubeApi, name: str) -> Manifest:
    """That of the model's pool, once the operator made it."""
    deployments: list[Manifest] = []

    async def there() -> bool:
        deployments[:] = [
            workload for workload in (await api.list(DEPLOYMENTS, SPACE)).items if workload["metadata"]["name"] == name
        ]
        return bool(deployments)

    await wait_until(there)
    return deployments[0]


async def ready(api: KubeApi, name: str) -> None:
    """As the Deployment's controller says it when all is well."""
    await report_replicas(api, f"{name}-main", readyReplicas=1, updatedReplicas=1)


async def report_replicas(api: KubeApi, name: str, **counts: int) -> None:
    observed = (await deployment(api, name))["metadata"]["generation"]
    status = {"replicas": 1, "observedGeneration": observed, **counts}
    await api.apply_status(manifest(DEPLOYMENTS, name, SPACE, status=status), "kube-controller-manager")


async def pod(api: KubeApi, name: str, status: dict[str, Any], annotations: dict[str, str] | None = None) -> None:
    """Creates a pod of the model's pool with this status."""
    template = (await deployment(api, f"{name}-main"))["spec"]["template"]
    labels = template["metadata"]["labels"]
    metadata = {"labels": labels, "annotations": annotations or {}}
    spec = {"containers": [{"name": "engine", "image": "example.com/sim:1"}]}
    await api.apply(manifest(PODS, f"{name}-main-0", SPACE, metadata, spec=spec), "test")
    await api.apply_status(manifest(PODS, f"{name}-main-0", SPACE, status=status), "kubelet")


def waiting(reason: str, message: str) -> dict[str, Any]:
    container = {
        "name": "engine",
        "image": "example.com/none:1",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": {"reason": reason, "message": message}},
    }
    return {"phase": "Pending", "containerStatuses": [container]}


FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "image-unpullable": ("ImagePullFailed", waiting("ImagePullBackOff", "Back-off pulling image")),
    "credentials-missing": ("MissingSecret", waiting("CreateContainerConfigError", 'secret "weights" not found')),
    "accelerator-unschedulable": (
        "InsufficientCapacity",
        {
            "phase": "Pending",
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",  # long before any grace is over
                }
            ],
        },
    ),
}


async def test_stalled_models_alert_by_name_and_reason(api_server: ApiServer, fires: Firing, tmp_path: Path) -> None:
    """And before, while all of them are ready, nothing is."""
    async with client_in_namespace(api_server) as api:
        recording, well = SeriesRecording(), SeriesRecording()
        async with operator_of(api_server, tmp_path) as operator:
            for name in FAULTS:
                await api.apply(model(name), "kubectl")
                await ready(api, name)
            await wait_until_reported(operator, *(condition(name, "Ready", "AllReady", 1) for name in FAULTS))
            before = await scrape(operator)
            well.hold(60, before)
            fires(well, lacking="_gateway_")

            await api.apply(model("unknown", "no-such-device"), "kubectl")
            for name, (_, status) in FAULTS.items():
                await report_replicas(api, f"{name}-main")
                await pod(api, name, status)
            reasons = {name: reason for name, (reason, _) in FAULTS.items()} | {"unknown": "UnknownAccelerator"}
            await wait_until_reported(
                operator, *(condition(name, "Stalled", reason, 1) for name, reason in reasons.items())
            )
            after = await scrape(operator)
        recording.hold(30, before)
        recording.hold(30, after)
        fires(recording, "FairleadModelStalled", lacking="_gateway_")
        fires(recording, *reasons.values(), lacking="_gateway_", label="reason")
        fires(recording, *(f"{SPACE}/{name}" for name in reasons), lacking="_gateway_", label="model")

        gone = SeriesRecording()
        gone.hold(30, before)
        gone.hold(30)
        fires(gone, "FairleadOperatorDown", lacking="_gateway_")


async def test_operator_waiting_for_an_abandoned_lease_alerts(
    api_server: ApiServer, fires: Firing, tmp_path: Path
) -> None:
    async with client_in_namespace(api_server) as api:
        held = {"holderIdentity": "somebody", "leaseDurationSeconds": 3_600}
        await api.apply(manifest(LEASES, "fairlead-operator", SPACE, spec=held), "test")
        recording = SeriesRecording()
        async with operator_of(api_server, tmp_path) as operator:
            await wait_until_reported(operator, "fairlead_operator_leading 0.0")
            recording.hold(60, await scrape(operator))
        released = {"holderIdentity": "", "leaseDurationSeconds": 1}
        await api.apply(manifest(LEASES, "fairlead-operator", SPACE, spec=released), "test")
        fires(recording, "FairleadOperatorNoLeader", lacking="_gateway_")


@pytest.mark.parametrize(
    ("taken", "alert", "line"),
    [
        (("deployments", "list"), "FairleadOperatorUnsynced", "fairlead_operator_leading 1.0"),
        (("services", "create"), "FairleadModelStalled", condition("qwen", "Stalled", "Forbidden", 1)),
    ],
    ids=["to-list", "to-write"],
)
async def test_operator_without_a_permission_alerts(
    taken: tuple[str, str], alert: str, line: str, api_server: ApiServer, program: Path, fires: Firing, tmp_path: Path
) -> None:
    manifests = [
        without(rendered, *taken)
        for rendered in render_chart(program, f"--namespace={SPACE}", f"--set=watchNamespaces={{{SPACE}}}")
    ]
    async with client_in_namespace(api_server) as api:
        await apply_rights(api, manifests, SPACE)
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(await kubeconfig_for_account(api_server, SPACE, "fairlead-operator"))
        await api.apply(model("qwen"), "kubectl")
        recording = SeriesRecording()
        async with operator_of(api_server, tmp_path, kubeconfig) as operator:
            await wait_until_reported(operator, line)
            recording.hold(60, await scrape(operator))
        fires(recording, alert, lacking="_gateway_")


def without(role: Manifest, resource: str, verb: str) -> Manifest:
    """A role without one right; everything else as it is."""
    changed = copy.deepcopy(role)
    for rule in changed.get("rules", ()):
        if resource in rule.get("resources", ()):
            rule["verbs"] = [allowed for allowed in rule["verbs"] if allowed != verb]
    return changed


async def test_healthy_run_is_silent_and_gateway_without_cluster_alerts(
    api_server: ApiServer,
    fires: Firing,
    assert_reported: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Operator and gateway share an API server, which stops after some traffic."""
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
    body = {"model": f"{SPACE}/tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    async with client_in_namespace(api_server) as api:
        async with AsyncExitStack() as stack:
            engine = await stack.enter_async_context(engine_process("--profile", "tiny-cpu", "--speed", "20"))
            await api.apply(model("tiny"), "kubectl")
            operator = await stack.enter_async_context(operator_of(api_server, tmp_path))
            gateway = await stack.enter_async_context(gateway_process(None, "--kube", SPACE, "--insecure"))
            await ready(api, "tiny")
            port = {"fairlead.io/port": str(urlsplit(engine.url).port)}
            well = [{"type": "Ready", "status": "True"}]
            await pod(api, "tiny", {"phase": "Running", "podIP": "127.0.0.1", "conditions": well}, port)
            await wait_until_reported(operator, condition("tiny", "Ready", "AllReady", 1))

            async def serves() -> bool:
                return (await request(gateway.url, body)).status == 200

            await wait_until(serves)
            first = await traffic(gateway, body), await scrape(operator)
            second = await traffic(gateway, body), await scrape(operator)
            assert_documented(second[1])
            assert_reported("fairlead_operator_", second[1])
            pairs = list(zip(first, second, strict=True))
            silent = SeriesRecording()
            silent.grow(60, *pairs)
            fires(silent)

            age = await gateway.metric("fairlead_gateway_fleet_age_seconds")
            api_server.kill()
            try:

                async def deaf() -> bool:
                    older = await gateway.metric("fairlead_gateway_fleet_age_seconds") > age
                    return older and "cannot watch the cluster" in await gateway.warnings()

                await wait_until(deaf)
                last = await traffic(gateway, body)
            finally:
                await asyncio.to_thread(api_server.start)
        stale = SeriesRecording()
        stale.grow(30, *pairs)
        stale.grow(30, (second[0], last), pairs[1], aging="fairlead_gateway_fleet_age_seconds")
        fires(stale, "FairleadFleetStale")


async def traffic(gateway: GatewayProcess, body: dict[str, Any]) -> Scrape:
    """Sends requests, and returns the metrics of the gateway."""
    for _ in range(20):
        assert (await request(gateway.url, body)).status == 200
    return await scrape_gateway(gateway)


def assert_documented(operator: Scrape) -> None:
    """Checks that the operator's guide lists its metrics."""
    documented = (CHART_FOLDER.parents[1] / "docs" / "concepts" / "operator.md").read_text().partition("| metric (")[2]
    listed = {
        metric
        for row in documented.splitlines()
        for metric in re.findall(r"`(\w+)(?:\{[\w,]*\})?`", row.rpartition(" | ")[0])
    }
    assert {f"fairlead_operator_{metric}" for metric in listed} == {name for name, _ in operator}

"""The chart on a real API server: every object is accepted, and the rights of the components
suffice.
"""

import asyncio
from pathlib import Path

import pytest
import yaml

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import NotFound
from fairlead.kube.resources import DEPLOYMENTS, EVENTS, LEASES, MODEL_DEPLOYMENTS, Manifest, Resource, label_selector
from fairlead.runtime.clock import SystemClock
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.helm import (
    RBAC_KINDS,
    apply_namespace,
    apply_rights,
    kubeconfig_for_account,
    kubectl,
    render_chart,
)
from fairlead_testing.kube.manifests import simulated_model
from fairlead_testing.kube.operator_process import operator_process
from fairlead_testing.waiting import wait_until

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
CASES = sorted((Path(__file__).parent / "values").glob("*.yaml"))
ELSEWHERE = {"ServiceMonitor", "PrometheusRule", "HTTPRoute"}
"""Kinds that a cluster has only if they were installed."""
MODEL = simulated_model("qwen", "charted")


GUARDS = tuple(f"charted-fairlead-operator{end}" for end in ("", "-objects", "-accounts"))


def api_of(server: ApiServer) -> KubeApi:
    return KubeApi(server.config(), SystemClock(), lambda: 0.5)


async def test_api_server_accepts_every_object_and_field(api_server: ApiServer, program: Path) -> None:
    """One run of kubectl has the objects of all cases, equal ones once."""
    async with api_of(api_server) as api:
        for name in ("fairlead", "team-a", "team-b"):
            await apply_namespace(api, name)
    manifests: list[Manifest] = []
    for case in CASES:
        rendered = render_chart(program, f"--values={case}")
        manifests += [
            manifest for manifest in rendered if manifest["kind"] not in ELSEWHERE and manifest not in manifests
        ]
    arguments = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    output = kubectl(api_server, *arguments, text=yaml.safe_dump_all(manifests))
    assert len(output.splitlines()) == len(manifests)


async def test_operator_serves_a_model_with_exactly_its_permissions(
    api_server: ApiServer, program: Path, tmp_path: Path
) -> None:
    """As its service account, by the roles and guards of the chart. The rest is refused."""
    manifests = render_chart(program, "--namespace=charted")
    kubeconfig = tmp_path / "kubeconfig"
    async with api_of(api_server) as api:
        await apply_rights(api, manifests, "charted")
        guard = [
            manifest
            for manifest in manifests
            if manifest["metadata"]["name"] in GUARDS and manifest["kind"] not in RBAC_KINDS
        ]
        await asyncio.to_thread(kubectl, api_server, "apply", "-f", "-", text=yaml.safe_dump_all(guard))
        kubeconfig.write_text(await kubeconfig_for_account(api_server, "charted", "fairlead-operator"))
        async with operator_process(kubeconfig, tmp_path / "log", installation="charted.fairlead") as operator:
            await api.apply(MODEL, "kubectl")
            await wait_until(lambda: there(api, DEPLOYMENTS, "qwen-main"))
            await wait_until(lambda: has_status_and_event(api))
            assert await there(api, LEASES, "fairlead-operator")
            renamed = simulated_model("qwen", "charted", pools=[{"name": "other", "acceleratorClassName": "cpu"}])
            await api.apply(renamed, "kubectl")  # the old pool is pruned
            await wait_until(lambda: there(api, DEPLOYMENTS, "qwen-other"))
            labels = label_selector({"fairlead.io/model": "qwen"})
            await wait_until(lambda: only(api, labels, "qwen-other"))
            code, log = await asyncio.to_thread(operator.stop), operator.log.read_text()
        assert code == 0, log
        assert "forbidden" not in log.lower()
        assert "denied" not in log.lower()


async def test_gateway_finds_models_with_exactly_its_permissions(
    api_server: ApiServer, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = render_chart(program, "--namespace=charted")
    async with api_of(api_server) as api:
        await apply_rights(api, manifests, "charted")
        await api.apply(MODEL, "kubectl")
        (tmp_path / "kubeconfig").write_text(await kubeconfig_for_account(api_server, "charted", "fairlead-gateway"))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        async with gateway_process(None, "--kube") as gateway:
            listed = await gateway.get_json("/api/fleet")
            assert "charted/qwen" in str(listed)
            assert "forbidden" not in (await gateway.warnings()).lower()


async def there(api: KubeApi, kind: Resource, name: str) -> bool:
    try:
        await api.get(kind, "charted", name)
    except NotFound:
        return False
    return True


async def has_status_and_event(api: KubeApi) -> bool:
    """Returns True once a status and an event were written."""
    status = (await api.get(MODEL_DEPLOYMENTS, "charted", "qwen")).get("status") or {}
    return bool(status.get("conditions")) and bool((await api.list(EVENTS, "charted")).items)


async def only(api: KubeApi, labels: str, name: str) -> bool:
    listed = (await api.list(DEPLOYMENTS, "charted", labels)).items
    return [manifest["metadata"]["name"] for manifest in listed] == [name]

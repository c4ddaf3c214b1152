"""A revocation on a real API server, while its tenant cannot be changed."""

import asyncio
import hashlib
import hmac
from pathlib import Path
from typing import Any

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.resources import CONFIG_MAPS, MODEL_TENANTS, Manifest
from fairlead.runtime.clock import SystemClock
from fairlead_cli.cluster.access.connection import local_user
from fairlead_testing.cli.command_line import run_program
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.http.raw_client import get_request, send
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.helm import apply_rights, kubeconfig_for_account, pod_specs, render_chart
from fairlead_testing.kube.manifests import manifest
from fairlead_testing.waiting import wait_until

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
PLACE, PEPPER = "revoking", "a pepper of the test"
KEY, STOLEN = "fl_kept", "fl_stolen"


def digest(key: str) -> str:
    return hmac.new(PEPPER.encode(), key.encode(), hashlib.sha256).hexdigest()


KEYS = [{"name": "prod", "digest": digest(STOLEN)}, {"name": "ci", "digest": digest(KEY)}]
TENANT = manifest(MODEL_TENANTS, "acme-revoking", spec={"keys": KEYS})
RULES: tuple[dict[str, Any], ...] = (
    {"apiGroups": ["serving.fairlead.io"], "resources": ["modeltenants"], "verbs": ["get", "list"]},
    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
)
LIST_RULE = {
    "apiGroups": [""],
    "resources": ["configmaps"],
    "resourceNames": ["fairlead-revoked-keys"],
    "verbs": ["get", "patch"],
}


async def apply_reader_of_tenants(api: KubeApi) -> None:
    """Creates an account that may read tenants and write the list of revoked keys."""
    metadata = {"name": "revoker", "namespace": PLACE}
    subjects = [{"kind": "ServiceAccount", **metadata}]
    await api.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}, "test")
    group = "rbac.authorization.k8s.io"
    for kind, rules in (("ClusterRole", RULES), ("Role", (LIST_RULE,))):
        named = {"name": "revoker"} if kind == "ClusterRole" else metadata
        head = {"apiVersion": f"{group}/v1", "metadata": named}
        reference = {"apiGroup": group, "kind": kind, "name": "revoker"}
        await api.apply({**head, "kind": kind, "rules": list(rules)}, "test")
        await api.apply({**head, "kind": f"{kind}Binding", "roleRef": reference, "subjects": subjects}, "test")


async def is_answered(gateway: GatewayProcess, key: str, status: int) -> bool:
    more = f"authorization: Bearer {key}\r\n"
    return (await send(gateway.url, get_request("/v1/models", more=more)))[0].status == status


async def revoke(kubeconfig: Path, *words: str) -> tuple[int, str]:
    command = ("keys", "revoke", *words, f"--install-namespace={PLACE}")
    done = await asyncio.to_thread(run_program, *command, KUBECONFIG=str(kubeconfig))
    return done.returncode, done.stdout + done.stderr


async def test_a_key_is_revoked_although_its_tenant_cannot_be_written(
    api_server: ApiServer, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = render_chart(program, f"--namespace={PLACE}")
    (container,) = pod_specs(manifests)["Deployment fairlead-gateway"]["containers"]
    options = [word for word in container["args"] if word.startswith("--kube-")]
    async with KubeApi(api_server.config(), SystemClock(), lambda: 0.5) as api:
        await apply_rights(api, manifests, PLACE)
        for document in manifests:
            if document["metadata"]["name"] in ("fairlead-gateway", "fairlead-revoked-keys") and document["kind"] in (
                "Deployment",
                "ConfigMap",
            ):
                await api.apply(document, "helm")
        await apply_reader_of_tenants(api)
        await api.apply(TENANT, "kubectl")
        for account in ("fairlead-gateway", "revoker"):
            (tmp_path / account).write_text(await kubeconfig_for_account(api_server, PLACE, account))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "fairlead-gateway"))
        monkeypatch.setenv("FAIRLEAD_KEY_PEPPER", PEPPER)
        async with gateway_process(None, "--kube", *options) as gateway:
            await wait_until(lambda: is_answered(gateway, STOLEN, 200))
            code, output = await revoke(tmp_path / "revoker", "acme-revoking", "prod")
            assert code == 2, output
            assert f"gateways refuse the key by the ConfigMap {PLACE}/fairlead-revoked-keys" in output
            assert "you may not patch modeltenants" in output
            await wait_until(lambda: is_answered(gateway, STOLEN, 401))
            assert await is_answered(gateway, KEY, 200)
            assert "forbidden" not in (await gateway.warnings()).lower()
            (record,) = [entry for entry in await audited(gateway) if entry["action"] == "KeyRevoked"]
            person = f"{local_user()} (fairlead-cli)"
            assert (record["object"], record["actor"]) == ("ApiKey/acme-revoking/prod", person)

            code, output = await revoke(api_server.kubeconfig, "acme-revoking", "ci")
            assert code == 0, output
            await wait_until(lambda: is_answered(gateway, KEY, 401))
            await api.apply(TENANT, "kubectl")  # a repository brings the keys back
            weight = {"spec": {"weight": 7}}
            await api.patch_merge(MODEL_TENANTS, None, "acme-revoking", weight, "kubectl")
            await wait_until(lambda: has_weight(gateway, 7))
            assert [await is_answered(gateway, key, 401) for key in (KEY, STOLEN)] == [True, True]
        listed = (await api.get(CONFIG_MAPS, PLACE, "fairlead-revoked-keys"))["data"]["revoked"]
        assert listed.split() == [digest(STOLEN), digest(KEY)]
        await api.apply(found_list(manifests), "helm")  # as an upgrade does
        assert (await api.get(CONFIG_MAPS, PLACE, "fairlead-revoked-keys"))["data"]["revoked"] == listed


async def audited(gateway: GatewayProcess) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = (await gateway.get_json("/api/audit"))["records"]
    return records


def found_list(manifests: list[Manifest]) -> Manifest:
    return next(document for document in manifests if document["metadata"]["name"] == "fairlead-revoked-keys")


async def has_weight(gateway: GatewayProcess, weight: int) -> bool:
    tenants = (await gateway.get_json("/api/tenants"))["tenants"]
    return any(tenant["name"] == "acme-revoking" and tenant["weight"] == weight for tenant in tenants)

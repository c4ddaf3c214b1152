"""What of the chart a process needs that runs outside of any cluster, put onto a real API server: CRDs, a namespace, its rights."""

import asyncio
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from fairlead.kube.client import KubeApi
from fairlead.kube.resources import MODEL_DEPLOYMENTS, Manifest
from fairlead_testing.kube.api_server import ApiServer, binaries_folder
from fairlead_testing.kube.helm import CHART_FOLDER
from fairlead_testing.waiting import wait_until_async

RBAC_KINDS = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}


def kubectl(server: ApiServer, *arguments: str, text: str | None = None) -> str:
    """What kubectl says. Raises AssertionError with its complaint."""
    program = (binaries_folder() or Path()) / "kubectl"
    assert program.exists(), (
        "no kubectl beside kube-apiserver: unset KUBEBUILDER_ASSETS, and `make test-tools` compiles one"
    )
    command = [str(program), f"--kubeconfig={server.kubeconfig}", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def apply_namespace(api: KubeApi, name: str) -> None:
    """A namespace, there or not."""
    await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}, "test")


def read_manifests(folder: Path) -> list[Manifest]:
    """Those of a folder's files, one in each, in their order."""
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.yaml"))]


async def apply_crds(api: KubeApi, folder: Path = CHART_FOLDER / "crds") -> None:
    """Fairlead's kinds, which the server serves afterwards."""
    for manifest in read_manifests(folder):
        await api.apply(manifest, "test")
    await wait_until_async(lambda: api.has_resource(MODEL_DEPLOYMENTS))


async def apply_rights(api: KubeApi, found: Iterable[Manifest], namespace_name: str) -> None:
    """The CRDs, the namespace ``place``, and of the chart's manifests those that are rights."""
    await apply_crds(api)
    await apply_namespace(api, namespace_name)
    for one in found:
        if one["kind"] in RBAC_KINDS:
            await api.apply(one, "test")


async def kubeconfig_for_account(server: ApiServer, namespace_name: str, account: str) -> str:
    """The administrator's kubeconfig with a token of this service account in place of the certificate."""
    token = await asyncio.to_thread(kubectl, server, "-n", namespace_name, "create", "token", account)
    config: dict[str, Any] = yaml.safe_load(server.kubeconfig.read_text(encoding="utf-8"))
    config["users"] = [{"name": one["name"], "user": {"token": token.strip()}} for one in config["users"]]
    for one in config["contexts"]:
        one["context"]["namespace"] = namespace_name
    return yaml.safe_dump(config)

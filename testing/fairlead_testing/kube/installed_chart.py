"""Installs parts of the chart on a real API server: CRDs, a namespace, permissions.

For processes that run outside of the cluster.
"""

import asyncio
import copy
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fairlead.kube.client import KubeApi
from fairlead.kube.resources import MODEL_DEPLOYMENTS, Manifest
from fairlead_testing.kube.api_server import ApiServer, binaries_folder
from fairlead_testing.kube.helm import CHART_FOLDER
from fairlead_testing.waiting import wait_until
from fairlead_testing.yaml_documents import load_document

RBAC_KINDS = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}


def kubectl(server: ApiServer, *arguments: str, text: str | None = None) -> str:
    """Runs kubectl and returns its output. Raises AssertionError with its error."""
    program = (binaries_folder() or Path()) / "kubectl"
    assert program.exists(), (
        "no kubectl next to kube-apiserver: unset KUBEBUILDER_ASSETS, and `make test CLUSTER=1` compiles one"
    )
    command = [str(program), f"--kubeconfig={server.kubeconfig}", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def apply_namespace(api: KubeApi, name: str) -> None:
    """Creates a namespace, if needed."""
    await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}, "test")


def read_manifests(folder: Path) -> list[Manifest]:
    """Returns the manifests of a folder's files, one per file, in order."""
    return [copy.deepcopy(_parsed(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.yaml"))]


@cache
def _parsed(text: str) -> Manifest:
    """Parses a text once in this process. CRDs are long, and most tests apply them."""
    manifest: Manifest = load_document(text)
    return manifest


async def apply_crds(api: KubeApi, folder: Path = CHART_FOLDER / "crds") -> None:
    """Applies the CRDs and waits until they are served."""
    for manifest in read_manifests(folder):
        await api.apply(manifest, "test")
    await wait_until(lambda: api.has_resource(MODEL_DEPLOYMENTS))


async def apply_rights(api: KubeApi, found: Iterable[Manifest], namespace_name: str) -> None:
    """Applies the CRDs, the namespace, and the RBAC objects of the chart."""
    await apply_crds(api)
    await apply_namespace(api, namespace_name)
    for one in found:
        if one["kind"] in RBAC_KINDS:
            await api.apply(one, "test")


async def kubeconfig_for_account(server: ApiServer, namespace_name: str, account: str) -> str:
    """Returns the administrator's kubeconfig with a token of this service account."""
    token = await asyncio.to_thread(kubectl, server, "-n", namespace_name, "create", "token", account)
    config: dict[str, Any] = load_document(server.kubeconfig.read_text(encoding="utf-8"))
    config["users"] = [{"name": one["name"], "user": {"token": token.strip()}} for one in config["users"]]
    for one in config["contexts"]:
        one["context"]["namespace"] = namespace_name
    return yaml.safe_dump(config)

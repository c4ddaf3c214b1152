"""Renders and installs the chart with helm, for tests and for `scripts/golden.py`.

Installs parts of the chart on a real API server: CRDs, a namespace, permissions.

For processes that run outside of the cluster.
"""

import asyncio
import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fairlead.kube.client import KubeApi
from fairlead.kube.resources import MODEL_DEPLOYMENTS, Manifest
from fairlead_testing.kube.api_server import CLUSTER_TOOL, ApiServer, binaries_folder
from fairlead_testing.waiting import wait_until
from fairlead_testing.yaml_documents import load_document, load_documents

CHART_FOLDER = Path(__file__).parents[3] / "charts" / "fairlead"
OPTIONAL_API_VERSIONS = ("monitoring.coreos.com/v1", "gateway.networking.k8s.io/v1")
"""Optional API groups that the chart uses if the cluster serves them."""
_QUICK = {"GOGC": "400"}
"""A quarter less processor time for each run of helm: Go collects its garbage less often."""
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

RBAC_KINDS = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}


class HelmError(Exception):
    """Raised with helm's message if it fails."""


@dataclass(frozen=True, slots=True)
class ChartTools:
    """Tools of the chart tests besides helm. `openapi`: folder of OpenAPI files by Kubernetes
    release.
    """

    helm: Path
    promtool: Path
    openapi: Mapping[str, Path]


def chart_tools() -> ChartTools | None:
    """Returns the tools; None if they were not built."""
    if not CLUSTER_TOOL.exists():
        return None
    command = [sys.executable, str(CLUSTER_TOOL), "tools", "--look"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode:
        return None
    found = {name: Path(path) for name, path in json.loads(asked.stdout).items()}
    return ChartTools(
        found["helm"], found["promtool"], {name: path for name, path in found.items() if name.startswith("v")}
    )


def helm_program() -> Path | None:
    """Returns helm: the one compiled for test clusters, else one on PATH, else None."""
    made = chart_tools()
    if made is not None:
        return made.helm
    folder = binaries_folder()
    if folder is not None and (folder / "helm").exists():
        return folder / "helm"
    found = shutil.which("helm")
    return None if found is None else Path(found)


def render_chart(
    program: Path, *arguments: str, served: tuple[str, ...] = OPTIONAL_API_VERSIONS, fresh: bool = False
) -> list[dict[str, Any]]:
    """Returns the objects of `helm install` as release `fairlead`, namespace `fairlead`. Raises
    HelmError.

    The caller may change the objects. Equal arguments and values files give equal objects in one
    process, generated secrets included.
    fresh: renders again, with secrets of its own.
    """
    versions = [f"--api-versions={one}" for one in served]
    command = (str(program), "template", "fairlead", str(CHART_FOLDER), "--namespace=fairlead", *versions, *arguments)
    if fresh:
        return _run_template(command)
    files = [Path(argument.partition("=")[2]) for argument in arguments if argument.startswith("--values=")]
    return copy.deepcopy(_rendered(command, *(file.read_bytes() for file in files)))


@cache
def _rendered(command: tuple[str, ...], *_values: bytes) -> list[dict[str, Any]]:
    return _run_template(command)


def _run_template(command: tuple[str, ...]) -> list[dict[str, Any]]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **_QUICK})
    if done.returncode:
        raise HelmError(done.stderr.strip())
    return [document for document in load_documents(done.stdout) if document is not None]


@dataclass(frozen=True, slots=True)
class HelmRelease:
    """The release `fairlead` in a namespace of a real API server. `folder` has helm's caches."""

    program: Path
    kubeconfig: Path
    namespace: str
    folder: Path

    def __call__(self, verb: str, *arguments: str) -> str:
        """Runs helm and returns its output. Raises HelmError."""
        folders = {f"HELM_{name}_HOME": str(self.folder / name) for name in ("CACHE", "CONFIG", "DATA")}
        command = [str(self.program), verb, "fairlead", *arguments, f"--namespace={self.namespace}"]
        done = subprocess.run(
            [*command, f"--kubeconfig={self.kubeconfig}"],
            env={**os.environ, **_QUICK, **folders},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise HelmError(done.stderr.strip())
        return done.stdout


def golden_text(manifests: list[dict[str, Any]]) -> str:
    """Returns the manifests as reproducible text. Secrets are random, so that only their keys are
    shown.
    """
    shown = [
        {**manifest, "data": dict.fromkeys(manifest["data"], "drawn")} if manifest["kind"] == "Secret" else manifest
        for manifest in manifests
    ]
    return str(yaml.dump_all(shown, Dumper=_DUMPER, sort_keys=True, width=116))


def pod_specs(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the pod specs by kind and name."""
    found = {}
    for manifest in manifests:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        if manifest["kind"] == "Pod":
            found[name] = manifest["spec"]
        elif "template" in manifest.get("spec", {}):
            found[name] = manifest["spec"]["template"]["spec"]
    return found


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
    await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}, "test")


def read_manifests(folder: Path) -> list[Manifest]:
    """Returns the manifests of a folder's files, one per file, in order."""
    return [copy.deepcopy(_parsed(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.yaml"))]


@cache
def _parsed(text: str) -> Manifest:
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
    for manifest in found:
        if manifest["kind"] in RBAC_KINDS:
            await api.apply(manifest, "test")


async def kubeconfig_for_account(server: ApiServer, namespace_name: str, account: str) -> str:
    """Returns the administrator's kubeconfig with a token of this service account."""
    token = await asyncio.to_thread(kubectl, server, "-n", namespace_name, "create", "token", account)
    config: dict[str, Any] = load_document(server.kubeconfig.read_text(encoding="utf-8"))
    config["users"] = [{"name": user["name"], "user": {"token": token.strip()}} for user in config["users"]]
    for context in config["contexts"]:
        context["context"]["namespace"] = namespace_name
    return yaml.safe_dump(config)

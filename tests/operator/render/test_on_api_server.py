"""Rendered objects on a real API server: it accepts every field and value, and Pod Security admits
them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import KubeError
from fairlead.kube.resources import NAMESPACES, PODS, Manifest
from fairlead.runtime.clock import SystemClock
from fairlead_operator.render import render_model
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.render_cases import default_context, read_case

pytestmark = pytest.mark.api_server
CASES = sorted((Path(__file__).parent / "cases").glob("*.yaml"))
NAMESPACE = "rendered"
LEVEL = "pod-security.kubernetes.io/enforce"


def everything() -> Iterator[tuple[str, Manifest]]:
    """(case, manifest) of all cases, in one namespace."""
    for case in CASES:
        model, classes = read_case(case)
        for manifest in render_model(model, classes, default_context()).manifests:
            yield case.stem, {**manifest, "metadata": {**manifest["metadata"], "namespace": NAMESPACE}}


def pods(case: str, manifest: Manifest) -> Iterator[Manifest]:
    """The pods that a workload would make."""
    spec: dict[str, Any] = manifest.get("spec", {})
    group = spec.get("leaderWorkerTemplate", {})
    templates = (spec.get("template"), group.get("leaderTemplate"), group.get("workerTemplate"))
    for number, template in enumerate(template for template in templates if template is not None):
        metadata = {**template["metadata"], "name": f"{case}-{number}", "namespace": NAMESPACE}
        pod = {**template["spec"], "serviceAccountName": "default"}
        pod.pop("priorityClassName", None)  # of the cluster
        yield {"apiVersion": PODS.api_version, "kind": PODS.kind, "metadata": metadata, "spec": pod}


async def test_api_server_accepts_every_object_and_pod(api_server: ApiServer) -> None:
    refused: list[str] = []

    async def tried(api: KubeApi, case: str, manifest: Manifest) -> None:
        try:
            await api.apply(manifest, "fairlead", dry_run=True)
        except KubeError as error:
            refused.append(f"{case}: {manifest['kind']}: {error}")

    async with KubeApi(api_server.config(), SystemClock(), lambda: 0.5) as api:
        metadata = {"name": NAMESPACE, "labels": {LEVEL: "restricted"}}
        await api.apply({"apiVersion": "v1", "kind": NAMESPACES.kind, "metadata": metadata}, "test")
        for case, manifest in everything():
            for pod in pods(case, manifest):
                await tried(api, case, pod)
            if manifest["kind"] != "LeaderWorkerSet":  # whose definition this server does not have
                await tried(api, case, manifest)
    sidecar = [
        error
        for error in refused
        if error.startswith("overrides: Pod") and 'container "sidecar" must set' in error and "engine" not in error
    ]
    assert [error for error in refused if error not in sidecar] == []
    assert len(sidecar) == 1  # a user's own container is the user's, and the server says what is wrong with it

"""Recorded manifests of earlier releases: today's types and CRDs accept them, and upgrades keep
them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest

from fairlead.api.v1alpha1 import AcceleratorClass, ModelDeployment
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Invalid
from fairlead.kube.resources import ACCELERATOR_CLASSES, MODEL_DEPLOYMENTS, Manifest, name_of, namespace_of, resource_of
from fairlead.runtime.clock import SystemClock
from fairlead_testing.kube.api_server import ApiServer, api_server_for_test
from fairlead_testing.waiting import wait_until
from fairlead_testing.yaml_documents import load_document, load_documents

EARLIER, CRDS = Path(__file__).parent / "earlier", Path(__file__).parents[3] / "crds"
RELEASES = ("first", "second")
ME, SPACE = "test", "earlier"
KINDS = {"ModelDeployment": ModelDeployment, "AcceleratorClass": AcceleratorClass}


def recorded(file: str) -> list[Manifest]:
    manifests = []
    for document in load_documents((EARLIER / f"{file}.yaml").read_text()):
        placed = (
            {**document["metadata"], "namespace": SPACE} if resource_of(document).namespaced else document["metadata"]
        )
        manifests.append({**document, "metadata": placed})
    return manifests


@asynccontextmanager
async def client(server: ApiServer) -> AsyncIterator[KubeApi]:
    """A client, with the namespace of the recorded manifests."""
    async with KubeApi(server.config(), SystemClock(), Random(0).random) as api:
        await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}}, ME)
        yield api


async def define(api: KubeApi, definitions: list[Manifest]) -> None:
    for definition in definitions:
        await api.apply(definition, ME)
    for resource in (MODEL_DEPLOYMENTS, ACCELERATOR_CLASSES):
        await wait_until(partial(api.has_resource, resource))


def todays() -> list[Manifest]:
    return [load_document(file.read_text()) for file in sorted(CRDS.glob("*.yaml"))]


@pytest.mark.parametrize("release", RELEASES)
def test_current_types_accept_earlier_manifests(release: str) -> None:
    for manifest in recorded(release):
        KINDS[manifest["kind"]].model_validate(manifest)


@pytest.mark.api_server
@pytest.mark.parametrize("release", RELEASES)
async def test_current_schema_accepts_earlier_manifests(api_server: ApiServer, release: str) -> None:
    async with client(api_server) as api:
        await define(api, todays())
        for manifest in recorded(release):
            await api.apply(manifest, ME, dry_run=True)


@pytest.mark.api_server
@pytest.mark.timeout(300)
async def test_stored_objects_survive_a_crd_upgrade(tmp_path: Path) -> None:
    # its own API server: kinds are the whole cluster's
    with api_server_for_test(tmp_path / "run") as server:
        async with client(server) as api:
            await define(api, list(load_documents((EARLIER / "first-crds.yaml").read_text())))
            stored = [await api.apply(manifest, "kubectl") for manifest in recorded("first")]
            await define(api, todays())

            async def upgraded() -> bool:
                """Returns True once the API server accepts a field of today's schema."""
                body = {"apiVersion": MODEL_DEPLOYMENTS.api_version, "kind": "ModelDeployment"}
                probe = {**body, "metadata": {"name": "probe", "namespace": SPACE}}
                spec = {
                    "model": {"uri": "hf://a/b"},
                    "pools": [{"acceleratorClassName": "cpu"}],
                    "rollout": {"maxSurge": 2},
                }
                try:
                    applied = await api.apply({**probe, "spec": spec}, ME, dry_run=True)
                except Invalid:
                    return False
                return applied["spec"].get("rollout", {}).get("maxSurge") == 2

            await wait_until(upgraded)
            for manifest in stored:
                place = resource_of(manifest), namespace_of(manifest), name_of(manifest)
                current = await api.get(*place)
                assert current["metadata"]["uid"] == manifest["metadata"]["uid"]
                patch = {"metadata": {"annotations": {"touched": "yes"}}}
                touched = await api.patch_merge(*place, patch, ME)  # validated as a whole, defaults filled in
                assert _holds(touched["spec"], manifest["spec"])
                if manifest["kind"] == "ModelDeployment":
                    names = {name: manifest["metadata"][name] for name in ("name", "namespace")}
                    identity = {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "metadata": names}
                    await api.apply_status({**identity, "status": {"ready": "1/1"}}, "fairlead-operator")


def _holds(whole: object, part: object) -> bool:
    """Is everything of ``part`` in ``whole`` still?"""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(_holds(whole.get(name), value) for name, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) == len(whole) and all(_holds(entry, other) for entry, other in zip(whole, part, strict=True))
    return whole == part

"""The CRDs on a real API server: its verdicts equal those of the table and of `fairlead lint`."""

from functools import partial
from pathlib import Path
from random import Random

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Invalid
from fairlead.kube.resources import ACCELERATOR_CLASSES, MODEL_DEPLOYMENTS, Manifest, resource_of
from fairlead.runtime.clock import SystemClock
from fairlead_testing.kube.api_server import (
    AcceptedCase,
    ApiServer,
    ChangedCase,
    RefusedCase,
    accepted_cases,
    changed_cases,
    refused_cases,
    without_empty,
)
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.waiting import wait_until
from fairlead_testing.yaml_documents import load_document

ROOT = Path(__file__).parents[3]
TABLE = Path(__file__).parent / "rules"
ME = "test"
SPACE = "api-rules"


def client(server: ApiServer) -> KubeApi:
    return KubeApi(server.config(), SystemClock(), Random(0).random)


@pytest.fixture(scope="module")
def server(api_server: ApiServer) -> ApiServer:
    """With our CRDs, established, and a namespace of this module's own."""

    async def prepare() -> None:
        async with client(api_server) as api:
            for file in sorted((ROOT / "crds").glob("*.yaml")):
                await api.apply(load_document(file.read_text()), ME)
            await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}}, ME)
            for resource in (MODEL_DEPLOYMENTS, ACCELERATOR_CLASSES):
                await wait_until(partial(api.has_resource, resource))

    run_async(prepare())
    return api_server


def placed(manifest: Manifest) -> Manifest:
    """In the namespace of this module, where its kind has one."""
    if not resource_of(manifest).namespaced:
        return manifest
    return {**manifest, "metadata": {**manifest["metadata"], "namespace": SPACE}}


async def remove(api: KubeApi, manifest: Manifest) -> None:
    metadata = manifest["metadata"]
    await api.delete(resource_of(manifest), metadata.get("namespace"), metadata["name"])


async def test_invalid_objects_are_refused_with_the_table_text(server: ApiServer) -> None:
    async def verdict(api: KubeApi, case: RefusedCase) -> str:
        """Returns the differences from the table; empty if there are none."""
        try:
            await api.create(placed(case.object), ME)  # as `kubectl apply` does the first time
        except Invalid as error:
            return "" if case.server in error.message else error.message
        await remove(api, placed(case.object))
        return "it was taken"

    async with client(server) as api:
        verdicts = {case.name: await verdict(api, case) for case in refused_cases(TABLE)}
        assert {name: text for name, text in verdicts.items() if text} == {}


@pytest.mark.parametrize("case", list(accepted_cases(TABLE)), ids=lambda case: case.name)
async def test_valid_objects_are_accepted_with_defaults(server: ApiServer, case: AcceptedCase) -> None:
    async with client(server) as api:
        applied = await api.apply(placed(case.object), ME, dry_run=True)
        if case.becomes is not None:
            assert without_empty(applied["spec"]) == without_empty(case.becomes)


@pytest.mark.parametrize("case", list(changed_cases(TABLE)), ids=lambda case: case.name)
async def test_unsupported_changes_are_refused(server: ApiServer, case: ChangedCase) -> None:
    async with client(server) as api:
        await api.apply(placed(case.before), ME)
        try:
            with pytest.raises(Invalid) as error:
                await api.apply(placed(case.after), ME)
        finally:
            await remove(api, placed(case.before))
        assert case.says in error.value.message


MODEL: Manifest = {
    "apiVersion": "serving.fairlead.io/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"name": "scaled", "namespace": SPACE},
    "spec": {"model": {"uri": "hf://a/b"}, "pools": [{"name": "main", "acceleratorClassName": "cpu"}]},
}


async def test_model_with_one_pool_is_scalable_and_with_two_is_not(server: ApiServer) -> None:
    async with client(server) as api:

        async def scale(replicas: int) -> Manifest:
            patch = {"spec": {"replicas": replicas}}
            return await api.patch_merge(MODEL_DEPLOYMENTS, SPACE, "scaled", patch, "somebody", subresource="scale")

        await api.apply(MODEL, ME)
        try:
            assert (await scale(3))["spec"] == {"replicas": 3}
            assert (await api.apply(MODEL, ME))["spec"]["replicas"] == 3  # a manifest without the field leaves it
            await api.patch_merge(MODEL_DEPLOYMENTS, SPACE, "scaled", {"spec": {"replicas": None}}, "somebody")
            two = [*MODEL["spec"]["pools"], {"name": "more", "acceleratorClassName": "cpu"}]
            await api.apply({**MODEL, "spec": {**MODEL["spec"], "pools": two}}, ME)
            with pytest.raises(Invalid, match="replicas is for a model with one pool"):
                await scale(3)
        finally:
            await remove(api, MODEL)


async def test_status_writers_keep_their_own_conditions(server: ApiServer) -> None:
    def condition(kind: str, reason: str) -> Manifest:
        return {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": "2026-11-20T10:00:00Z"}

    async with client(server) as api:
        await api.apply(MODEL, ME)
        try:
            ours = {"ready": "1/1", "conditions": [condition("Ready", "AllReady")]}
            theirs = {"conditions": [condition("SLOMet", "Met")]}
            await api.apply_status({**MODEL, "status": ours}, "fairlead-operator")
            await api.apply_status({**MODEL, "status": theirs}, "fairlead-autoscaler")
            applied = await api.apply_status({**MODEL, "status": ours}, "fairlead-operator")
            assert [condition["type"] for condition in applied["status"]["conditions"]] == ["Ready", "SLOMet"]
            assert applied["metadata"]["generation"] == 1
            with pytest.raises(Invalid):
                await api.apply_status({**MODEL, "status": {"conditions": [condition("Ready", "x" * 65)]}}, ME)
        finally:
            await remove(api, MODEL)

"""Our kinds through the package ``kubernetes``, the client that most Python programs use.

It applies, watches, scales and deletes a model, and sees what our own client sees.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client, config, watch

from e2e.kube.cluster_access.kubectl import Kubectl
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.kube.workloads.manifests import API, model, paced_engine
from e2e.kube.workloads.model_deployments import DeployedModel

pytestmark = [pytest.mark.lane("models", position=40), pytest.mark.extended]

GROUP, VERSION = API.split("/")
PLURAL = "modeldeployments"
APPLY = "application/apply-patch+yaml"
WATCH_SECONDS = 120


@pytest.fixture
def api(here: Kubectl) -> Iterator[client.ApiClient]:
    with config.new_client_from_config(here.environ["KUBECONFIG"]) as found:
        yield found


def settled(objects: client.CustomObjectsApi, namespace: str, name: str) -> dict[str, Any]:
    """Returns the model once its watch shows it ready with what its spec says."""
    events = watch.Watch().stream(
        objects.list_namespaced_custom_object,
        *(GROUP, VERSION, namespace, PLURAL),
        field_selector=f"metadata.name={name}",
        timeout_seconds=WATCH_SECONDS,
    )
    for event in events:
        found: dict[str, Any] = event["object"]
        status = found.get("status", {})
        ready = [condition["status"] for condition in status.get("conditions", []) if condition["type"] == "Ready"]
        if ready == ["True"] and status.get("observedGeneration") == found["metadata"]["generation"]:
            return found
    raise AssertionError(f"{name} was not ready within {WATCH_SECONDS} s")


def test_a_model_is_applied_watched_scaled_and_deleted(
    here: Kubectl, api: client.ApiClient, installed: HelmRelease
) -> None:
    here.apply(paced_engine())
    objects: Any = client.CustomObjectsApi(api)
    place = (GROUP, VERSION, here.namespace, PLURAL, "py")
    objects.patch_namespaced_custom_object(
        *place, model("py"), field_manager="e2e-python", force=True, _content_type=APPLY
    )  # of a status 201 the package returns no object
    applied = objects.get_namespaced_custom_object(*place)
    assert applied["metadata"]["managedFields"][0]["manager"] == "e2e-python"
    first = settled(objects, here.namespace, "py")
    found = DeployedModel(here, "py")
    found.wait_until_settled(pods=1)

    def same(one: dict[str, Any]) -> tuple[Any, ...]:
        return one["metadata"]["uid"], one["metadata"]["generation"], one["spec"]

    assert same(first) == same(found.get())
    objects.patch_namespaced_custom_object_scale(*place, {"spec": {"replicas": 2}})
    assert objects.get_namespaced_custom_object_scale(*place)["spec"]["replicas"] == 2
    second = settled(objects, here.namespace, "py")
    found.wait_until_settled(pods=2)
    assert same(second) == same(found.get()) != same(first)
    wrong = {"spec": {"replicas": "many"}}
    with pytest.raises(client.ApiException) as refused:
        objects.patch_namespaced_custom_object(*place, wrong, _content_type="application/merge-patch+json")
    assert (refused.value.status, "replicas" in str(refused.value.body)) == (422, True)
    objects.delete_namespaced_custom_object(*place)
    here.wait("delete", "modeldeployment/py")
    with pytest.raises(client.ApiException) as gone:
        objects.get_namespaced_custom_object(*place)
    assert gone.value.status == 404

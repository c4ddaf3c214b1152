"""API paths of objects, and names that cannot be part of one."""

import pytest

from fairlead.api.kinds import served_kinds
from fairlead.errors import BadInput
from fairlead.kube import resources
from fairlead.kube.resources import RESOURCES_BY_KIND, Resource, key_of, label_selector, resource_of


@pytest.mark.parametrize(
    ("resource", "place", "path"),
    [
        (resources.PODS, (None, None, None), "/api/v1/pods"),
        (resources.PODS, ("x", None, None), "/api/v1/namespaces/x/pods"),
        (resources.PODS, ("x", "y", "eviction"), "/api/v1/namespaces/x/pods/y/eviction"),
        (resources.NODES, (None, "n", None), "/api/v1/nodes/n"),
        (resources.DEPLOYMENTS, ("x", "y", "scale"), "/apis/apps/v1/namespaces/x/deployments/y/scale"),
        (resources.ROLES, ("x", "a:b", None), "/apis/rbac.authorization.k8s.io/v1/namespaces/x/roles/a%3Ab"),
    ],
)
def test_paths(resource: Resource, place: tuple[str | None, str | None, str | None], path: str) -> None:
    assert resource.path(*place) == path


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "%2e%2e", "../../secrets/s"])
def test_names_cannot_leave_their_path(name: str) -> None:
    with pytest.raises(BadInput, match="cannot name an object"):
        resources.PODS.path("x", name)
    with pytest.raises(BadInput, match="cannot name an object"):
        resources.PODS.path(name, "x")


def test_scopes_are_enforced() -> None:
    with pytest.raises(BadInput, match="needs a namespace"):
        resources.PODS.path(None, "y")
    with pytest.raises(BadInput, match="has no namespace"):
        resources.NODES.path("x", "y")


def test_resource_of_a_manifest_is_found() -> None:
    manifest = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "y", "namespace": "x"}}
    assert resource_of(manifest) is resources.DEPLOYMENTS
    assert key_of(manifest) == "x/y"
    assert key_of({"metadata": {"name": "n"}}) == "n"
    with pytest.raises(BadInput, match="apps/v2 Deployment"):
        resource_of({**manifest, "apiVersion": "apps/v2"})
    with pytest.raises(BadInput, match="no name"):
        key_of({"kind": "Pod", "metadata": {}})


def test_custom_kinds_match_the_api_types() -> None:
    ours = {
        (resource.kind, resource.plural, resource.namespaced)
        for resource in RESOURCES_BY_KIND.values()
        if resource.group == "serving.fairlead.io"
    }
    assert ours == {(kind.name, kind.plural, kind.namespaced) for kind in served_kinds()}


def test_selector_requires_all_labels() -> None:
    assert label_selector({"b": "2", "a": "1"}) == "a=1,b=2"

"""Changes of a ModelTenant that others change at the same time."""

import asyncio
import copy
from collections.abc import Sequence
from typing import Any, cast

import pytest

from fairlead.errors import BadInput
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import AlreadyExists, Conflict, Forbidden, NotFound
from fairlead.kube.json_decoding import ObjectList
from fairlead.kube.resources import Manifest, Resource
from fairlead_cli.tenants.cluster_store import add_to_revocation_list, edit_keys
from fairlead_cli.tenants.store import Entry, keys_of

A, B = {"name": "a", "digest": "a" * 64}, {"name": "b", "digest": "b" * 64}
DENIED = (
    'PATCH /apis/x: modeltenants.serving.fairlead.io "acme" is forbidden: User "u" cannot patch resource '
    '"modeltenants" in API group "serving.fairlead.io" at the cluster scope'
)


class Tenants:
    """One ModelTenant of an API server, which refuses changes of an old version.

    rivals: changes that another administrator makes between a read and the write after it.
    """

    def __init__(self, rivals: int = 0, error: Exception | None = None) -> None:
        self.rivals = rivals
        self.error = error
        self.version = 1
        self.object: Manifest = {"metadata": {"name": "acme", "resourceVersion": "1"}, "spec": {"keys": []}}

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        if name != "acme":
            raise NotFound("none", status=404)
        tenant = copy.deepcopy(self.object)
        if self.rivals:
            self.rivals -= 1
            self._write([*keys_of(self.object), {"name": f"rival-{self.rivals}", "digest": "r" * 64}])
        return tenant

    async def list(self, resource: Resource, namespace: str | None = None, labels: str | None = None) -> ObjectList:
        return ObjectList([self.object], "1")

    async def patch_merge(self, resource: Resource, namespace: str | None, name: str, patch: Any, manager: str) -> None:
        if self.error is not None:
            raise self.error
        if patch["metadata"]["resourceVersion"] != self.object["metadata"]["resourceVersion"]:
            raise Conflict("the object has been modified", status=409)
        self._write(patch["spec"]["keys"])

    def _write(self, keys: Sequence[Entry]) -> None:
        self.version += 1
        self.object = {"metadata": {"name": "acme", "resourceVersion": str(self.version)}, "spec": {"keys": list(keys)}}


def run(tenants: Tenants, name: str = "acme", entry: Entry = A) -> None:
    asyncio.run(edit_keys(cast(KubeApi, tenants), name, lambda entries: [*entries, entry]))


def test_two_administrators_lose_no_key() -> None:
    tenants = Tenants(rivals=3)
    run(tenants)
    run(tenants, entry=B)
    assert [entry["name"] for entry in keys_of(tenants.object)] == ["rival-2", "rival-1", "rival-0", "a", "b"]


def test_after_ten_conflicts_the_command_gives_up() -> None:
    tenants = Tenants(rivals=10)
    with pytest.raises(Conflict):
        run(tenants)
    assert all(entry["name"].startswith("rival") for entry in keys_of(tenants.object))


def test_an_unknown_tenant_is_named_with_those_that_exist() -> None:
    with pytest.raises(BadInput, match=r"has no ModelTenant acne.*tenants there: acme"):
        run(Tenants(), "acne")


def test_a_missing_right_is_named() -> None:
    with pytest.raises(BadInput, match="you may not patch modeltenants in the whole cluster") as refused:
        run(Tenants(error=Forbidden(DENIED, status=403)))
    assert "patch modeltenants.serving.fairlead.io" in str(refused.value.hint)


REVOKED_A, REVOKED_B, C = "a" * 64, "b" * 64, "c" * 64


class ConfigMaps:
    """REVOKED_A cluster with at most one ConfigMap, which refuses changes of an old version.

    rivals: digests that other administrators add between a read and the write after it.
    """

    def __init__(self, *rivals: str, text: str | None = None) -> None:
        self.rivals = list(rivals)
        self.text = text
        self.version = 1

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        text, version = self.text, self.version
        if self.rivals:
            self.text, self.version = f"{text or ''}{self.rivals.pop(0)}\n", version + 1
        if text is None:
            raise NotFound("none", status=404)
        data = {"data": {"revoked": text}} if text else {}  # as the chart creates it
        return {"metadata": {"resourceVersion": str(version)}, **data}

    async def create(self, manifest: Manifest, manager: str) -> None:
        if self.text is not None:
            raise AlreadyExists("it exists", status=409)
        self.text = manifest["data"]["revoked"]

    async def patch_merge(self, resource: Resource, namespace: str | None, name: str, patch: Any, manager: str) -> None:
        if patch["metadata"]["resourceVersion"] != str(self.version):
            raise Conflict("the object has been modified", status=409)
        self.text = patch["data"]["revoked"]


def add(place: ConfigMaps, *digests: str) -> list[str]:
    asyncio.run(add_to_revocation_list(cast(KubeApi, place), "fairlead", "fairlead-revoked-keys", digests))
    return (place.text or "").splitlines()


@pytest.mark.parametrize("text", [None, ""])
def test_a_list_without_content_gets_its_first_digests(text: str | None) -> None:
    assert add(ConfigMaps(text=text), REVOKED_A, REVOKED_B.upper(), REVOKED_A) == [REVOKED_A, REVOKED_B]


def test_comments_stay_and_no_digest_is_written_twice() -> None:
    assert add(ConfigMaps(text=f"# of 2026\n{REVOKED_A.upper()}  # acme/prod"), REVOKED_A, REVOKED_B) == [
        "# of 2026",
        f"{REVOKED_A.upper()}  # acme/prod",
        REVOKED_B,
    ]


def test_two_administrators_lose_no_revocation() -> None:
    assert add(ConfigMaps(REVOKED_B, C), REVOKED_A) == [REVOKED_B, C, REVOKED_A]


def test_after_ten_conflicts_the_revocation_gives_up() -> None:
    with pytest.raises(Conflict):
        add(ConfigMaps(*(f"{number:064x}" for number in range(10)), text=""), REVOKED_A)

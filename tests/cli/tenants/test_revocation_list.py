"""The revocation list of a cluster, which others change at the same time."""

import asyncio
from typing import Any, cast

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import AlreadyExists, Conflict, NotFound
from fairlead.kube.resources import Manifest, Resource
from fairlead_cli.tenants.cluster_store import add_to_revocation_list

A, B, C = "a" * 64, "b" * 64, "c" * 64


class ConfigMaps:
    """A cluster with at most one ConfigMap, which refuses changes of an old version.

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
    assert add(ConfigMaps(text=text), A, B.upper(), A) == [A, B]


def test_comments_stay_and_no_digest_is_written_twice() -> None:
    assert add(ConfigMaps(text=f"# of 2026\n{A.upper()}  # acme/prod"), A, B) == [
        "# of 2026",
        f"{A.upper()}  # acme/prod",
        B,
    ]


def test_two_administrators_lose_no_revocation() -> None:
    assert add(ConfigMaps(B, C), A) == [B, C, A]


def test_after_ten_conflicts_the_command_gives_up() -> None:
    with pytest.raises(Conflict):
        add(ConfigMaps(*(f"{number:064x}" for number in range(10)), text=""), A)

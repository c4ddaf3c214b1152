"""Artefacts of a layout reach a registry: complete, checked, and each blob sent once."""

import json
from pathlib import Path

import pytest

from fairlead.errors import BadInput
from fairlead_testing.http.oci_registry import USER, MemoryRegistry, memory_registry
from scripts.release.oci import (
    CONFIG,
    INDEX,
    LAYER,
    MANIFEST,
    Descriptor,
    LayoutError,
    OciLayout,
    Reference,
    RegistryClient,
    RegistryError,
    encode,
)


def image(layout: OciLayout, name: bytes) -> Descriptor:
    """An index with one image of two layers."""
    config = layout.add(encode({"name": name.decode()}), CONFIG)
    layers = [layout.add(data, LAYER) for data in (b"the layer that both images have", name)]
    manifest = encode({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [layout.add(manifest, MANIFEST)]}
    return layout.add(encode(index), INDEX)


@pytest.fixture
def layout(tmp_path: Path) -> OciLayout:
    created = OciLayout(tmp_path / "oci")
    created.set_entries({"one:1": image(created, b"one"), "deep/two:1": image(created, b"two")})
    return created


def uploads(registry: MemoryRegistry) -> list[str]:
    return [request for request in registry.requests if request.startswith("PUT") and "/blobs/" in request]


def test_a_shared_layer_is_sent_once_and_a_second_push_sends_none(layout: OciLayout) -> None:
    with memory_registry() as registry, RegistryClient() as client:
        client.push_entries(layout, f"{registry.address}/team")
        assert {("team/one", "1"), ("team/deep/two", "1")} <= registry.manifests.keys()
        assert len(uploads(registry)) == 5  # two configs, two layers of their own, the shared one
        registry.requests.clear()
        client.push_entries(layout, f"{registry.address}/team")
        assert uploads(registry) == []


def test_a_registry_that_asks_for_a_token_gets_one(
    tmp_path: Path, layout: OciLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with memory_registry(token="secret") as registry:
        with RegistryClient() as client, pytest.raises(RegistryError, match="docker login"):
            client.push_entries(layout, registry.address)
        (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": USER}}}))
        with RegistryClient() as client:
            client.push_entries(layout, registry.address)
        assert ("one", "1") in registry.manifests


def test_a_missing_registry_is_named(layout: OciLayout) -> None:
    with RegistryClient() as client, pytest.raises(RegistryError, match="no registry answers"):
        client.push_entries(layout, "127.0.0.1:1")


@pytest.mark.parametrize("damage", [b"{}", None])
def test_a_layout_with_a_damaged_document_is_not_pushed(layout: OciLayout, damage: bytes | None) -> None:
    path = layout.path(layout.entries()["one:1"]["digest"])
    path.unlink() if damage is None else path.write_bytes(damage)
    with memory_registry() as registry, RegistryClient() as client:
        with pytest.raises(LayoutError, match=r"damaged|missing"):
            client.push_entries(layout, registry.address)
        assert ("one", "1") not in registry.manifests


def test_a_registry_may_have_a_path_and_only_this_machine_is_reached_without_tls() -> None:
    assert Reference.below("ghcr.io/team", "a") == Reference("ghcr.io", "team/a")
    for host in ("localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000"):
        assert Reference.below(host, "a").base == f"http://{host}"
    for host in ("ghcr.io", "10.0.0.1:5000", "localhost.example.org"):
        assert Reference.below(host, "a").base == f"https://{host}"
    for wrong in ("", "a b", "ghcr.io/Team"):
        with pytest.raises(BadInput):
            Reference.below(wrong, "a")

"""Artefacts between layouts and registries: complete, checked, and each blob sent once."""

import json
from pathlib import Path

import pytest

from fairlead_cli.oci.documents import CONFIG, INDEX, LAYER, MANIFEST, Descriptor, descriptor, encode
from fairlead_cli.oci.layout import LayoutError, OciLayout
from fairlead_cli.oci.reference import Reference
from fairlead_cli.oci.registry import RegistryClient, RegistryError
from fairlead_cli.oci.transfer import pull, push_entries
from fairlead_testing.oci_registry import USER, MemoryRegistry, memory_registry

SHARED = b"the layer that both images have"


def image(layout: OciLayout, name: bytes) -> Descriptor:
    """An index with one image of two layers."""
    config = layout.add(encode({"name": name.decode()}), CONFIG)
    layers = [layout.add(data, LAYER) for data in (SHARED, name)]
    manifest = encode({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [layout.add(manifest, MANIFEST)]}
    return layout.add(encode(index), INDEX)


@pytest.fixture
def layout(tmp_path: Path) -> OciLayout:
    made = OciLayout(tmp_path / "oci")
    made.set_entries({"one:1": image(made, b"one"), "deep/two:1": image(made, b"two")})
    return made


def uploads(registry: MemoryRegistry) -> list[str]:
    return [request for request in registry.requests if request.startswith("PUT") and "/blobs/" in request]


def test_what_was_pushed_can_be_pulled(tmp_path: Path, layout: OciLayout) -> None:
    with memory_registry() as registry, RegistryClient() as client:
        push_entries(client, layout, f"{registry.address}/team")
        other = OciLayout(tmp_path / "other")
        source = Reference.parse(f"{registry.address}/team/deep/two:1")
        assert pull(client, source, other) == layout.entries()["deep/two:1"]
        other.set_entries({"two:1": layout.entries()["deep/two:1"]})
        assert other.verify() == 5


def test_a_shared_layer_is_sent_once_and_a_second_push_sends_none(layout: OciLayout) -> None:
    with memory_registry() as registry, RegistryClient() as client:
        push_entries(client, layout, registry.address)
        assert len(uploads(registry)) == 5  # two configs, two layers of their own, the shared one
        registry.requests.clear()
        push_entries(client, layout, registry.address)
        assert uploads(registry) == []


def test_a_registry_that_asks_for_a_token_gets_one(
    tmp_path: Path, layout: OciLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with memory_registry(token="secret") as registry:
        with RegistryClient() as client, pytest.raises(RegistryError, match="docker login"):
            push_entries(client, layout, registry.address)
        (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": USER}}}))
        with RegistryClient() as client:
            push_entries(client, layout, registry.address)
        assert ("one", "1") in registry.manifests


def test_other_bytes_than_the_digest_says_are_refused(tmp_path: Path, layout: OciLayout) -> None:
    with memory_registry() as registry, RegistryClient() as client:
        push_entries(client, layout, registry.address)
        digest = descriptor(SHARED, LAYER)["digest"]
        registry.damage[digest] = b"something else"
        target = OciLayout(tmp_path / "other")
        with pytest.raises(RegistryError, match="other bytes"):
            pull(client, Reference.parse(f"{registry.address}/one:1"), target)
        assert not target.path(digest).exists()


def test_a_manifest_with_other_bytes_is_refused(tmp_path: Path, layout: OciLayout) -> None:
    digest = layout.entries()["one:1"]["digest"]
    with memory_registry() as registry, RegistryClient() as client:
        registry.manifests["one", digest] = (b"{}", INDEX)
        with pytest.raises(RegistryError, match="other bytes"):
            pull(client, Reference.parse(f"{registry.address}/one@{digest}"), OciLayout(tmp_path / "other"))


def test_a_missing_artefact_and_a_missing_registry_are_named(tmp_path: Path) -> None:
    wanted = pytest.raises(RegistryError, match=r"404 for 127\.0\.0\.1:\d+/none:1")
    with memory_registry() as registry, RegistryClient() as client, wanted:
        pull(client, Reference.parse(f"{registry.address}/none:1"), OciLayout(tmp_path))
    with RegistryClient() as client, pytest.raises(RegistryError, match="no registry answers"):
        pull(client, Reference.parse(f"{registry.address}/none:1"), OciLayout(tmp_path))


def test_a_layout_with_a_damaged_document_is_not_pushed(layout: OciLayout) -> None:
    layout.path(layout.entries()["one:1"]["digest"]).write_bytes(b"{}")
    with memory_registry() as registry, RegistryClient() as client:
        with pytest.raises(LayoutError, match="damaged"):
            push_entries(client, layout, registry.address)
        assert ("one", "1") not in registry.manifests


@pytest.mark.parametrize("digest", ["sha256:../../etc/passwd", "md5:aa", "sha256:" + "A" * 64])
def test_a_digest_cannot_name_a_path(layout: OciLayout, digest: str) -> None:
    with pytest.raises(LayoutError):
        layout.path(digest)

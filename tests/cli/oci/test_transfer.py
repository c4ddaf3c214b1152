"""Artefacts between layouts and registries: complete, checked, and each blob sent once."""

import gzip
import json
from pathlib import Path

import httpx
import pytest

from fairlead_cli.oci import registry as registry_module
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


def wanted(registry: MemoryRegistry) -> Reference:
    return Reference.parse(f"{registry.address}/team/one:1")


def served(registry: MemoryRegistry, document: object) -> None:
    registry.manifests["team/one", "1"] = (encode(document), INDEX)


def test_answers_of_a_registry_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "MAX_DOCUMENT_BYTES", 4_096)
    with memory_registry() as registry, RegistryClient() as client:
        served(registry, {"manifests": [], "padding": "x" * 4_096})
        with pytest.raises(RegistryError, match=r"answers with more than 4,096 bytes"):
            pull(client, wanted(registry), OciLayout(tmp_path / "pulled"))


def test_blob_with_more_bytes_than_its_descriptor_says_is_not_read_on(tmp_path: Path) -> None:
    with memory_registry() as registry, RegistryClient() as client:
        digest = f"sha256:{'1' * 64}"
        registry.blobs["team/one", digest] = b"x" * 100_000
        served(registry, {"layers": [{"mediaType": LAYER, "digest": digest, "size": 10}]})
        with pytest.raises(RegistryError, match=r"answers with more than 10 bytes"):
            pull(client, wanted(registry), OciLayout(tmp_path / "pulled"))
        assert [
            path for path in (tmp_path / "pulled" / "blobs" / "sha256").iterdir() if path.name.startswith("1")
        ] == []
        served(registry, {"layers": [{"mediaType": LAYER, "digest": digest}]})
        with pytest.raises(RegistryError, match="does not say how large"):
            pull(client, wanted(registry), OciLayout(tmp_path / "again"))


def test_indexes_of_a_registry_are_not_followed_without_end(tmp_path: Path) -> None:
    with memory_registry() as registry, RegistryClient() as client:
        inner = encode({"manifests": []})
        for number in range(20):
            described = descriptor(inner, INDEX)
            registry.manifests["team/one", described["digest"]] = (inner, INDEX)
            inner = encode({"manifests": [described], "number": number})
        registry.manifests["team/one", "1"] = (inner, INDEX)
        with pytest.raises(RegistryError, match="nested deeper than 8 levels"):
            pull(client, wanted(registry), OciLayout(tmp_path / "pulled"))


def test_compressed_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = httpx.Response(200, headers={"content-encoding": "gzip"}, content=gzip.compress(b"x" * 1_000))
    with RegistryClient() as client:
        monkeypatch.setattr(client._http, "send", lambda request, **_: _with_request(bomb, request))
        with pytest.raises(RegistryError, match="compressed bytes"):
            pull(client, Reference.parse("127.0.0.1:1/team/one:1"), OciLayout(tmp_path / "pulled"))


def _with_request(answer: httpx.Response, request: httpx.Request) -> httpx.Response:
    answer.request = request
    return answer


@pytest.mark.parametrize("reply", [b"[]", b"[" * 100_000, b'{"token": 7}', b"{}", b'{"token": "a\nb"}', b"\xff"])
def test_answer_without_a_token_is_named(reply: bytes) -> None:
    answer = httpx.Response(200, content=reply)
    with pytest.raises(RegistryError, match="gives no token"):
        registry_module._token(answer, Reference.parse("127.0.0.1:1/team/one:1"))

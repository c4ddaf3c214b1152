"""OCI registries: artifacts of files, images of archives, tokens, and hostile layers."""

import base64
import gzip
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairlead.adapters.download import AdapterDownload
from fairlead_downloader.errors import (
    CredentialsRefused,
    DigestMismatch,
    InvalidContent,
    NoRoom,
    SourceFailed,
    SourceNotFound,
)
from fairlead_downloader.sources.oci_registry import read_docker_config
from fairlead_testing.http import oci_registry as oci
from fairlead_testing.http.oci_registry import MemoryRegistry, memory_registry

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(3_000), "sub/notes.txt": b"a"}


def plain(registry: MemoryRegistry) -> dict[str, str]:
    return {"OCI_PLAIN_HTTP_REGISTRIES": registry.address}


def read(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("reference", ["", ":latest", "@DIGEST", ":latest@DIGEST"])
def test_files_that_were_pushed_one_by_one(get: Any, reference: str) -> None:
    with memory_registry() as registry:
        pushed = oci.push_layers(registry, "acme/sql", oci.file_layers({**FILES, ".hidden": b"x"}))
        source = f"oci://{registry.address}/acme/sql{reference}".replace("DIGEST", pushed)
        adapter = get(AdapterDownload(source), plain(registry))
        assert read(adapter.path) == FILES
        assert not (adapter.path / ".hidden").exists()


@pytest.mark.parametrize("folder", ["", "./", "lora/v2/"])
def test_archive_may_have_the_adapter_in_a_folder(get: Any, folder: str) -> None:
    with memory_registry() as registry:
        layer = oci.tar_of({f"{folder}{name}": content for name, content in FILES.items()})
        oci.push_layers(registry, "acme/sql", [(layer, oci.TAR_TYPE, {})])
        adapter = get(AdapterDownload(f"oci://{registry.address}/acme/sql"), plain(registry))
        assert read(adapter.path) == FILES


def test_digest_of_the_folder_is_the_same_for_files_and_archives(get: Any) -> None:
    with memory_registry() as registry:
        oci.push_layers(registry, "acme/files", oci.file_layers(FILES))
        oci.push_layers(registry, "acme/image", [(oci.tar_of(FILES), oci.TAR_TYPE, {})])
        downloads = [
            get(AdapterDownload(f"oci://{registry.address}/acme/{name}"), plain(registry))
            for name in ("files", "image")
        ]
        assert downloads[0].digest == downloads[1].digest
        pinned = AdapterDownload(f"oci://{registry.address}/acme/image", digest=downloads[0].digest)
        assert get(pinned, plain(registry)).digest == downloads[0].digest


def test_index_of_one_manifest_is_followed_and_of_two_refused(get: Any) -> None:
    with memory_registry() as registry:
        pushed = oci.push_layers(registry, "acme/sql", oci.file_layers(FILES), "inner")
        entry = {"mediaType": oci.MANIFEST_TYPE, "digest": pushed, "size": 1}
        source = f"oci://{registry.address}/acme/sql"
        oci.push_document(registry, "acme/sql", {"manifests": [entry]}, oci.INDEX_TYPE, "one")
        oci.push_document(registry, "acme/sql", {"manifests": [entry, entry]}, oci.INDEX_TYPE, "two")
        assert read(get(AdapterDownload(f"{source}:one"), plain(registry)).path) == FILES
        with pytest.raises(InvalidContent, match="index of 2"):
            get(AdapterDownload(f"{source}:two"), plain(registry))


def test_token_is_asked_for_with_the_docker_configuration(get: Any, tmp_path: Path) -> None:
    with memory_registry(token="secret-token") as registry:
        oci.push_layers(registry, "acme/sql", oci.file_layers(FILES))
        download = AdapterDownload(f"oci://{registry.address}/acme/sql")
        with pytest.raises(CredentialsRefused):
            get(download, plain(registry))
        config = {"auths": {registry.address: {"auth": base64.b64encode(b"user:password").decode()}}}
        (tmp_path / ".dockerconfigjson").write_text(json.dumps(config))
        assert read(get(download, plain(registry), credentials=tmp_path).path) == FILES
        config["auths"][registry.address]["auth"] = base64.b64encode(b"user:wrong").decode()
        (tmp_path / ".dockerconfigjson").write_text(json.dumps(config))
        with pytest.raises(CredentialsRefused) as refused:
            get(AdapterDownload(f"{download.source}:latest"), plain(registry), credentials=tmp_path)
        assert "wrong" not in str(refused.value)


def test_token_that_expires_between_two_files_is_asked_for_again(get: Any, tmp_path: Path) -> None:
    class Requests(list[str]):
        """The requests; the token expires with the first one for a file."""

        def append(self, request: str) -> None:
            super().append(request)
            if "/blobs/" in request:
                registry.token = "later-token"

    with memory_registry(token="first-token") as registry:
        oci.push_layers(registry, "acme/sql", oci.file_layers(FILES))
        registry.requests = Requests()
        config = {"auths": {registry.address: {"username": "user", "password": "password"}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        download = AdapterDownload(f"oci://{registry.address}/acme/sql")
        assert read(get(download, plain(registry), credentials=tmp_path).path) == FILES
        assert registry.requests.count("GET /token") == 2


def test_docker_configuration_has_keys_of_several_forms() -> None:
    entry = {"username": "u", "password": "p"}
    text = json.dumps({"auths": {"https://index.docker.io/v1/": entry, "https://a.example/v2/": entry, "b:5000": {}}})
    assert read_docker_config(text) == {name: base64.b64encode(b"u:p").decode() for name in ("docker.io", "a.example")}
    for broken in ("[]", "{", '{"auths": {"a": {"auth": "%%"}}}', '{"auths": {"a": 1}}'):
        with pytest.raises(CredentialsRefused):
            read_docker_config(broken)


def test_absent_repository_and_registry_without_plain_http(get: Any) -> None:
    with memory_registry() as registry:
        with pytest.raises(SourceNotFound):
            get(AdapterDownload(f"oci://{registry.address}/acme/nothing"), plain(registry))
        with pytest.raises(SourceFailed):
            get(AdapterDownload(f"oci://{registry.address}/acme/sql"), {})


def test_damaged_blob_and_manifest_of_another_digest_are_refused(get: Any, tmp_path: Path) -> None:
    with memory_registry() as registry:
        oci.push_layers(registry, "acme/sql", oci.file_layers(FILES))
        registry.damage[oci.digest_of(b"a")] = b"b"
        with pytest.raises(DigestMismatch):
            get(AdapterDownload(f"oci://{registry.address}/acme/sql"), plain(registry))
        other = "sha256:" + "0" * 64
        registry.manifests["acme/sql", other] = registry.manifests["acme/sql", "latest"]
        with pytest.raises(DigestMismatch):
            get(AdapterDownload(f"oci://{registry.address}/acme/sql@{other}"), plain(registry))
        assert not list((tmp_path / "downloads").iterdir())


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("member", "content"),
    [
        (_member("../outside"), b"x"),
        (_member("/etc/outside"), b"x"),
        (_member("a/../../outside"), b"x"),
        (_member("link", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (_member("hard", tarfile.LNKTYPE, "/etc/passwd"), b""),
        (_member("pipe", tarfile.FIFOTYPE), b""),
        (_member("device", tarfile.CHRTYPE), b""),
        (_member("adapter_config.json"), b"again"),
        (_member("adapter_config.json/below"), b"x"),
        (_member("x" * 1_500_000), b"x"),
    ],
    ids=lambda value: value.name[:20] if isinstance(value, tarfile.TarInfo) else "",
)
def test_hostile_archives_are_refused(get: Any, tmp_path: Path, member: tarfile.TarInfo, content: bytes) -> None:
    good = (tarfile.TarInfo("adapter_config.json"), b"{}")
    with memory_registry() as registry:
        oci.push_layers(registry, "acme/sql", [(oci.tar_layer([good, (member, content)]), oci.TAR_TYPE, {})])
        with pytest.raises(InvalidContent):
            get(AdapterDownload(f"oci://{registry.address}/acme/sql"), plain(registry))
    assert {path.name for path in tmp_path.iterdir()} == {"downloads"}
    assert not list((tmp_path / "downloads").iterdir())


def test_compressed_zeros_find_no_room(get: Any, tmp_path: Path) -> None:
    layer = oci.tar_of({"adapter_config.json": b"{}", "zeros": bytes(50_000_000)})
    assert len(layer) < 100_000
    with memory_registry() as registry:
        oci.push_layers(registry, "acme/sql", [(layer, oci.TAR_TYPE, {})])
        with pytest.raises(NoRoom):
            get(AdapterDownload(f"oci://{registry.address}/acme/sql"), plain(registry))
    assert not list((tmp_path / "downloads").iterdir())


def _layer(content: bytes, media_type: str = oci.TAR_TYPE, **notes: str) -> Callable[[MemoryRegistry], object]:
    return lambda registry: oci.push_layers(registry, "acme/sql", [(content, media_type, notes)])


def _manifest(document: object) -> Callable[[MemoryRegistry], object]:
    return lambda registry: oci.push_document(registry, "acme/sql", document, oci.MANIFEST_TYPE, "latest")


@pytest.mark.parametrize(
    "push",
    [
        _layer(b"no archive"),
        _layer(gzip.compress(b"no archive" * 100)),
        _layer(oci.tar_of(FILES)[:-40]),
        _layer(b"x", "application/vnd.oci.image.layer.v1.tar+zstd"),
        _layer(b"x", oci.FILE_TYPE),
        _manifest({"layers": 7}),
        _manifest({"layers": [7]}),
        _manifest({"layers": [{"digest": "../../x", "size": 1, "mediaType": oci.TAR_TYPE}]}),
        _manifest({"layers": [{"digest": "sha256:" + "0" * 64, "mediaType": oci.TAR_TYPE}]}),
        _manifest({"layers": []}),
    ],
)
def test_artifacts_that_are_no_adapters_are_refused(get: Any, push: Callable[[MemoryRegistry], object]) -> None:
    with memory_registry() as registry:
        push(registry)
        with pytest.raises(InvalidContent):
            get(AdapterDownload(f"oci://{registry.address}/acme/sql"), plain(registry))

"""Image archives: the same content gives the same bytes, everybody may read them, and what images
share is stored once."""

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest

from e2e.cluster.artifacts.oci_archive import ImageLayer, OciImage, read_layer, write_archive, write_layer

CONFIG = {"Entrypoint": ["/program"], "User": "65532:65532"}


def tree(root: Path) -> Path:
    (root / "folder").mkdir(parents=True)
    (root / "tmp").mkdir()
    (root / "program").write_text("#!")
    (root / "program").chmod(0o700)
    (root / "folder" / "private").write_text("text")
    (root / "folder" / "private").chmod(0o600)
    (root / "link").symlink_to("folder/private")
    return root


@pytest.fixture
def layer(tmp_path: Path) -> ImageLayer:
    return write_layer(tree(tmp_path / "root"), tmp_path / "layer.tar.gz")


def test_a_layer_does_not_depend_on_times_or_on_who_made_it(tmp_path: Path, layer: ImageLayer) -> None:
    other = tree(tmp_path / "other")
    os.utime(other / "program", (1, 1))
    assert write_layer(other, tmp_path / "other.tar.gz").digest == layer.digest


def test_a_layers_files_belong_to_root_and_any_user_can_read_them(layer: ImageLayer) -> None:
    with tarfile.open(layer.path) as tar:
        entries = {entry.name: entry for entry in tar}
    assert {entry.uid for entry in entries.values()} == {0}
    modes = {name: entry.mode for name, entry in entries.items() if not entry.issym()}
    assert modes == {"folder": 0o755, "folder/private": 0o644, "program": 0o755, "tmp": 0o1777}
    assert entries["link"].linkname == "folder/private"


def test_a_layer_is_found_again_with_its_digests(tmp_path: Path, layer: ImageLayer) -> None:
    assert read_layer(layer.path) == layer
    assert hashlib.sha256(layer.path.read_bytes()).hexdigest() == layer.digest
    assert read_layer(tmp_path / "none.tar.gz") is None


def test_an_archive_names_its_images_and_holds_every_blob_once(tmp_path: Path, layer: ImageLayer) -> None:
    names = ["example.io/one:1", "example.io/two:1"]
    target = tmp_path / "images.tar"
    write_archive(target, [OciImage(name, [layer], CONFIG) for name in names])
    with tarfile.open(target) as tar:
        blobs = {name: tar.extractfile(name) for name in tar.getnames()}
        data = {name: blob.read() for name, blob in blobs.items() if blob}
    for name, content in data.items():
        if name.startswith("blobs/"):
            assert hashlib.sha256(content).hexdigest() == Path(name).name
    manifests = json.loads(data["index.json"])["manifests"]
    assert [one["annotations"]["io.containerd.image.name"] for one in manifests] == names
    manifest = json.loads(data[f"blobs/sha256/{manifests[0]['digest'].removeprefix('sha256:')}"])
    assert manifest["layers"][0]["digest"] == f"sha256:{layer.digest}"
    config = json.loads(data[f"blobs/sha256/{manifest['config']['digest'].removeprefix('sha256:')}"])
    assert config["config"] == CONFIG
    assert config["rootfs"]["diff_ids"] == [f"sha256:{layer.diff}"]
    assert len([name for name in data if name.endswith(layer.digest)]) == 1

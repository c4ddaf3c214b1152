"""Image archives: the same content gives the same bytes, everybody may read them, and what images
share is stored once."""

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest

from fairlead_testing.yaml_documents import load_document
from scripts.release import artefacts
from scripts.release.artefacts import add_chart, add_images, image_digests
from scripts.release.images.layers import ImageLayer, LayerStore, OciImage, read_layer, write_archive, write_layer
from scripts.release.oci import OciLayout

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
    assert [manifest["annotations"]["io.containerd.image.name"] for manifest in manifests] == names
    manifest = json.loads(data[f"blobs/sha256/{manifests[0]['digest'].removeprefix('sha256:')}"])
    assert manifest["layers"][0]["digest"] == f"sha256:{layer.digest}"
    config = json.loads(data[f"blobs/sha256/{manifest['config']['digest'].removeprefix('sha256:')}"])
    assert config["config"] == CONFIG
    assert config["rootfs"]["diff_ids"] == [f"sha256:{layer.diff}"]
    assert len([name for name in data if name.endswith(layer.digest)]) == 1


def images(layer: ImageLayer) -> list[OciImage]:
    return [OciImage("example.io/sim:1.2.3", [layer], CONFIG, architecture) for architecture in ("arm64", "amd64")]


def released(folder: Path, layer: ImageLayer) -> OciLayout:
    layout = OciLayout(folder / "oci")
    add_images(layout, images(layer), "1.2.3")
    add_chart(layout, "1.2.3", "example.org/team")
    return layout


def test_a_release_has_an_index_of_all_architectures_and_the_chart(tmp_path: Path, layer: ImageLayer) -> None:
    layout = released(tmp_path, layer)
    entries = layout.entries()
    assert list(entries) == ["charts/fairlead:1.2.3", "sim:1.2.3"]
    index = layout.document(entries["sim:1.2.3"]["digest"])
    platforms = [manifest["platform"] for manifest in index["manifests"]]
    assert platforms == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm64", "os": "linux", "variant": "v8"},
    ]
    configs = [
        layout.document(layout.document(manifest["digest"])["config"]["digest"]) for manifest in index["manifests"]
    ]
    assert [config["architecture"] for config in configs] == ["amd64", "arm64"]
    assert len(list((layout.folder / "blobs" / "sha256").iterdir())) == 9


def test_the_same_release_has_the_same_digests(tmp_path: Path, layer: ImageLayer) -> None:
    first, second = released(tmp_path / "one", layer), released(tmp_path / "two", layer)
    assert first.entries() == second.entries()
    charts = [(tmp_path / name / "fairlead-1.2.3.tgz").read_bytes() for name in ("one", "two")]
    assert charts[0] == charts[1]


def test_a_chart_names_no_image_that_no_pod_runs() -> None:
    described = {"digest": "sha256:1"}
    entries = {f"{name}:1.2.3": described for name in ("cli", "sim", "charts/fairlead")}
    assert image_digests(entries, "1.2.3") == {"sim": "sha256:1"}


def test_a_released_chart_names_its_version_and_the_digests_of_its_images(tmp_path: Path, layer: ImageLayer) -> None:
    layout = released(tmp_path, layer)
    with tarfile.open(tmp_path / "fairlead-1.2.3.tgz") as tar:
        texts = {name: tar.extractfile(f"fairlead/{name}") for name in ("Chart.yaml", artefacts.RELEASE_FILE)}
        head, pinned = (load_document(file.read()) for file in texts.values() if file)
    assert (head["version"], head["appVersion"]) == ("1.2.3", "1.2.3")
    assert pinned == {"registry": "example.org/team", "images": {"sim": layout.entries()["sim:1.2.3"]["digest"]}}


def test_a_second_release_leaves_no_blob_of_the_first(tmp_path: Path, layer: ImageLayer) -> None:
    released(tmp_path, layer)
    layout = OciLayout(tmp_path / "oci")
    add_images(layout, images(layer)[:1], "1.2.4")
    add_chart(layout, "1.2.4", None)
    assert list(layout.entries()) == ["charts/fairlead:1.2.4", "sim:1.2.4"]
    stored = {path.name for path in (layout.folder / "blobs" / "sha256").iterdir()}
    parts = {part["digest"] for entry in layout.entries().values() for part in layout.closure(entry)}
    assert {f"sha256:{name}" for name in stored} == parts


def test_a_layer_is_made_once_for_its_content(tmp_path: Path) -> None:
    store, roots = LayerStore(tmp_path), []

    def fill(root: Path) -> None:
        roots.append(root)
        (root / "file").write_text("text")

    first = store.layer("one", "a", fill)
    assert store.layer("one", "a", fill) == first
    assert len(roots) == 1
    store.layer("one", "b", fill)
    assert len(roots) == 2

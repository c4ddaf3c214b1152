"""Archives for clusters without internet: the same from files and from a registry, checked before
anything is pushed."""

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.errors import BadInput
from fairlead_cli.airgap.archive import CHECKSUMS, extract_archive, read_chart
from fairlead_cli.airgap.create import create_archive
from fairlead_cli.airgap.load import load_archive
from fairlead_cli.oci.layout import OciLayout
from fairlead_cli.oci.registry import RegistryClient
from fairlead_cli.oci.transfer import push_entries
from fairlead_testing.oci_registry import MemoryRegistry, memory_registry
from scripts.release.artefacts import add_chart, add_images
from scripts.release.images.layers import write_layer
from scripts.release.images.oci_images import OciImage

VERSION = "1.2.3"
CHART = f"charts/fairlead:{VERSION}"


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with memory_registry() as served:
        yield served


@pytest.fixture
def release(tmp_path: Path, registry: MemoryRegistry) -> Path:
    """The folder of a release for this registry, with images of one small layer."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "file").write_text("text")
    layer = write_layer(tmp_path / "root", tmp_path / "layer.tar.gz")
    names = ("gateway", "operator", "sim")
    images = [
        OciImage(f"x/{name}:{VERSION}", [layer], {"User": name}, one) for name in names for one in ("amd64", "arm64")
    ]
    layout = OciLayout(tmp_path / "dist" / "oci")
    add_images(layout, images, VERSION)
    add_chart(layout, VERSION, f"{registry.address}/team")
    return tmp_path / "dist"


def created(source: str, out: Path, *images: str) -> Path:
    return create_archive(source, out, images, plain_http=False, report=lambda _: None)


def rewritten(source: Path, target: Path, without: str = "", other: str = "") -> Path:
    """The archive without a member, or with other bytes in one."""
    with tarfile.open(source) as tar, tarfile.open(target, "w") as changed:
        for entry in tar:
            data = tar.extractfile(entry)
            content = data.read() if data else b""
            if entry.name == other:
                content = b"x" * len(content)
            if entry.name != without:
                changed.addfile(entry, io.BytesIO(content))
    return target


def test_an_archive_from_a_registry_is_the_one_from_files(
    tmp_path: Path, release: Path, registry: MemoryRegistry
) -> None:
    with RegistryClient() as client:
        push_entries(client, OciLayout(release / "oci"), f"{registry.address}/team")
    from_files = created(str(release), tmp_path / "files.tar")
    from_registry = created(f"oci://{registry.address}/team/{CHART}", tmp_path / "registry.tar")
    assert from_files.read_bytes() == from_registry.read_bytes()


def test_an_archive_has_chart_images_crds_and_checksums(tmp_path: Path, release: Path) -> None:
    archive = created(str(release), tmp_path / "a.tar")
    layout = extract_archive(archive, tmp_path / "out")
    assert list(layout.entries()) == [CHART, *(f"{name}:{VERSION}" for name in ("gateway", "operator", "sim"))]
    assert {path.name for path in (tmp_path / "out" / "crds").iterdir()} == set(read_chart(layout).crds)
    done = subprocess.run(
        ["sha256sum", "--strict", "--quiet", "-c", CHECKSUMS], cwd=tmp_path / "out", capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    checked = {line.partition("  ")[2] for line in (tmp_path / "out" / CHECKSUMS).read_text().splitlines()}
    there = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert checked == there - {CHECKSUMS}


def test_loading_pushes_everything_and_says_how_to_install(
    tmp_path: Path, release: Path, registry: MemoryRegistry
) -> None:
    archive = created(str(release), tmp_path / "a.tar")
    lines: list[str] = []
    load_archive(archive, f"{registry.address}/mirror", plain_http=False, report=lines.append)
    entries = OciLayout(release / "oci").entries()
    for name, described in entries.items():
        repository, _, tag = name.rpartition(":")
        assert (f"mirror/{repository}", tag) in registry.manifests
        assert f"pushed {registry.address}/mirror/{name}@{described['digest']}" in lines
    assert f"oci://{registry.address}/mirror/charts/fairlead@{entries[CHART]['digest']}" in lines[-1]
    assert f"--set global.imageRegistry={registry.address}/mirror" in lines[-1]


def test_images_of_engines_can_be_added(tmp_path: Path, release: Path, registry: MemoryRegistry) -> None:
    engines = OciLayout(tmp_path / "engines")
    gateway = OciLayout(release / "oci").entries()[f"gateway:{VERSION}"]
    for part in OciLayout(release / "oci").closure(gateway):
        engines.add_file(OciLayout(release / "oci").path(part["digest"]), part["digest"])
    engines.set_entries({"vllm/vllm-openai:v1": gateway})
    with RegistryClient() as client:
        push_entries(client, engines, registry.address)
    archive = created(str(release), tmp_path / "a.tar", f"{registry.address}/vllm/vllm-openai:v1")
    lines: list[str] = []
    load_archive(archive, f"{registry.address}/mirror", plain_http=False, report=lines.append)
    assert f"--set engines.images.vllm={registry.address}/mirror/vllm/vllm-openai:v1" in lines[-1]


@pytest.mark.parametrize("what", ["crds/modeldeployments.yaml", "index.json", "blob"])
@pytest.mark.parametrize("how", ["without", "other"])
def test_a_damaged_archive_is_refused_before_anything_is_pushed(
    tmp_path: Path, release: Path, registry: MemoryRegistry, what: str, how: str
) -> None:
    archive = created(str(release), tmp_path / "a.tar")
    entry = OciLayout(release / "oci").entries()[f"sim:{VERSION}"]
    name = f"blobs/{entry['digest'].replace(':', '/')}" if what == "blob" else what
    damaged = rewritten(archive, tmp_path / "damaged.tar", **{how: name})
    with pytest.raises(BadInput, match="missing or damaged"):
        load_archive(damaged, registry.address, plain_http=False, report=lambda _: None)
    assert registry.requests == []


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("no archive")
    with pytest.raises(BadInput, match="cannot be read"):
        extract_archive(tmp_path / "a.tar", tmp_path / "out")
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    with pytest.raises(BadInput, match="no archive of"):
        extract_archive(tmp_path / "b.tar", tmp_path / "out")


def test_a_folder_without_a_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="make release"):
        created(str(tmp_path), tmp_path / "a.tar")


def test_the_command_line_writes_and_loads(tmp_path: Path, release: Path, registry: MemoryRegistry) -> None:
    program = [sys.executable, "-m", "fairlead_cli", "airgap"]
    made = subprocess.run([*program, "create", str(release)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert made.stdout.splitlines()[-1] == f"fairlead-{VERSION}-airgap.tar"
    command = [*program, "load", f"fairlead-{VERSION}-airgap.tar", "--registry", registry.address]
    loaded = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "helm install fairlead oci://" in loaded.stdout
    wrong = subprocess.run([*program, "load", "none.tar", "--registry", registry.address], cwd=tmp_path, check=False)
    assert wrong.returncode == 2

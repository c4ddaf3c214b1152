"""Archives for clusters without internet: the same from files and from a registry, checked before
anything is pushed."""

import gzip
import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.errors import BadInput
from fairlead_cli.airgap.archive import CHECKSUMS, ReleasedChart, extract_archive, read_chart
from fairlead_cli.airgap.create import create_archive
from fairlead_cli.airgap.load import load_archive
from fairlead_cli.oci.documents import CHART_CONTENT, INDEX, MANIFEST, encode
from fairlead_cli.oci.layout import OciLayout, file_digest
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


def signing_key(folder: Path) -> Path:
    """Writes a private key, and its public part with the ending .pub."""
    key = folder / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", str(key), "-pubout", "-out", str(key.with_suffix(".pub"))], check=True)
    return key


def sign(archive: Path, key: Path) -> None:
    """Signs an archive as the guide says."""
    subprocess.run(["tar", "-xf", archive.name, CHECKSUMS], cwd=archive.parent, check=True)
    command = ["openssl", "pkeyutl", "-sign", "-rawin", "-inkey", str(key), "-in", CHECKSUMS]
    subprocess.run([*command, "-out", f"{archive.name}.sig"], cwd=archive.parent, check=True)


def test_signed_archive_is_loaded_with_its_key(tmp_path: Path, release: Path, registry: MemoryRegistry) -> None:
    archive, key = created(str(release), tmp_path / "a.tar"), signing_key(tmp_path)
    sign(archive, key)
    lines: list[str] = []
    public = key.with_suffix(".pub")
    load_archive(archive, f"{registry.address}/mirror", plain_http=False, report=lines.append, key=public)
    assert ("mirror/sim", VERSION) in registry.manifests
    assert "not checked" not in "\n".join(lines)


def test_loading_without_a_key_says_that_the_maker_is_unknown(
    tmp_path: Path, release: Path, registry: MemoryRegistry
) -> None:
    lines: list[str] = []
    archive = created(str(release), tmp_path / "a.tar")
    load_archive(archive, f"{registry.address}/mirror", plain_http=False, report=lines.append)
    assert "Who made it was not checked" in lines[0]


@pytest.mark.parametrize("forged", ["other archive", "other key", "no signature", "no key", "key is text"])
def test_archive_of_someone_else_is_refused_before_anything_is_pushed(
    tmp_path: Path, release: Path, registry: MemoryRegistry, forged: str
) -> None:
    """An attacker can write an archive whose own checksums are right, but not the signature."""
    archive, key = created(str(release), tmp_path / "a.tar"), signing_key(tmp_path)
    public, signature = key.with_suffix(".pub"), archive.with_name("a.tar.sig")
    sign(archive, key)
    match forged:
        case "other archive":
            layout = OciLayout(release / "oci")
            layout.set_entries({**layout.entries(), f"more:{VERSION}": layout.entries()[f"sim:{VERSION}"]})
            created(str(release), archive)
        case "other key":
            (tmp_path / "other").mkdir()
            public = signing_key(tmp_path / "other").with_suffix(".pub")
        case "no signature":
            signature.unlink()
        case "no key":
            public.unlink()
        case "key is text":
            public.write_text("ssh-ed25519 AAAA")
    with pytest.raises(BadInput, match=r"is no signature of the archive|is missing"):
        load_archive(archive, registry.address, plain_http=False, report=lambda _: None, key=public)
    assert registry.requests == []


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


def test_file_without_a_checksum_is_refused(tmp_path: Path, release: Path) -> None:
    archive = created(str(release), tmp_path / "a.tar")
    with tarfile.open(archive, "a") as tar:
        entry = tarfile.TarInfo("crds/more.yaml")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"a: 1"[:3]))
    with pytest.raises(BadInput, match=r"crds/more\.yaml of .* is not in SHA256SUMS"):
        extract_archive(archive, tmp_path / "out")


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("no archive")
    with pytest.raises(BadInput, match="cannot be read"):
        extract_archive(tmp_path / "a.tar", tmp_path / "out")
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("index.json"))
    with pytest.raises(BadInput, match="no archive of"):
        extract_archive(tmp_path / "b.tar", tmp_path / "out")


def hostile_archive(folder: Path, layout: OciLayout) -> Path:
    """An archive of a layout, whose checksums are right whatever its entries are."""
    files = {str(path.relative_to(layout.folder)): path for path in sorted(layout.folder.rglob("*")) if path.is_file()}
    sums = "".join(f"{file_digest(path).removeprefix('sha256:')}  {name}\n" for name, path in files.items())
    (folder / CHECKSUMS).write_text(sums)
    with tarfile.open(folder / "hostile.tar", "w") as tar:
        for name, path in {**files, CHECKSUMS: folder / CHECKSUMS}.items():
            tar.add(path, arcname=name)
    return folder / "hostile.tar"


@pytest.mark.parametrize(
    "name",
    [
        "../../library/python:3.11",
        "$(touch pwned)/vllm-openai:v1",
        "vllm-openai:v1;touch${IFS}pwned",
        "gateway\x1b]0;title\x07:1",
        "gateway?x:1",
        "gateway",
        "other.example.org:5000/gateway:1",
    ],
)
def test_names_of_an_archive_lead_nowhere_else_and_are_no_command(
    tmp_path: Path, release: Path, registry: MemoryRegistry, name: str
) -> None:
    layout = OciLayout(release / "oci")
    entries = layout.entries()
    layout.set_entries({**entries, name: entries[f"sim:{VERSION}"]})
    lines: list[str] = []
    with pytest.raises(BadInput, match="is no name of an artefact"):
        load_archive(hostile_archive(tmp_path, layout), f"{registry.address}/a", plain_http=False, report=lines.append)
    assert (registry.requests, lines) == ([], [])


def test_indexes_that_name_each_other_twice_are_read_once(tmp_path: Path, release: Path) -> None:
    layout = OciLayout(release / "oci")
    entries = layout.entries()
    for level in range(40):
        parts = [entries[f"sim:{VERSION}"]] * 1_000
        entries[f"wide:{level}"] = layout.add(encode({"level": level, "manifests": parts}), INDEX)
    nested = entries[f"sim:{VERSION}"]
    for _ in range(40):
        nested = layout.add(encode({"manifests": [nested, nested]}), INDEX)
    layout.set_entries(entries)
    read = extract_archive(hostile_archive(tmp_path, layout), tmp_path / "out")
    wide = [part["digest"] for part in read.closure(entries["wide:7"])]
    assert len(wide) == len(set(wide))
    layout.set_entries({**entries, "deep:1": nested})
    with pytest.raises(BadInput, match="nested deeper"):
        extract_archive(hostile_archive(tmp_path, layout), tmp_path / "deep")


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


@pytest.mark.parametrize(
    "members",
    [
        [_member("../outside")],
        [_member("/tmp/outside")],
        [_member("crds/../../outside")],
        [_member("crds/a.yaml", tarfile.SYMTYPE, "../../outside")],
        [_member("index.json", tarfile.LNKTYPE, "oci-layout")],
        [_member("index.json", tarfile.CHRTYPE)],
        [_member("index.json", tarfile.FIFOTYPE)],
        [_member("blobs", tarfile.DIRTYPE)],
        [_member("index.json"), _member("index.json")],
        [_member("further-file")],
    ],
)
def test_entries_that_no_archive_has_are_refused(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for member in members:
            tar.addfile(member)
    with pytest.raises(BadInput, match="which no such archive has"):
        extract_archive(tmp_path / "a.tar", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"a.tar", "out"}


def test_bytes_that_expand_are_refused(tmp_path: Path, release: Path) -> None:
    archive = created(str(release), tmp_path / "a.tar")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(archive.read_bytes()))
    with pytest.raises(BadInput, match="not compressed"):
        extract_archive(tmp_path / "a.tar.gz", tmp_path / "out")
    sparse = _member("index.json")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    sparse.size = 512
    with tarfile.open(tmp_path / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(sparse, io.BytesIO(f"1\n{1 << 39}\n0\n".encode().ljust(512, b"\0")))
    with pytest.raises(BadInput, match="which no such archive has"):
        extract_archive(tmp_path / "sparse.tar", tmp_path / "sparse")
    layout = OciLayout(tmp_path / "chart")
    layer = layout.add(gzip.compress(bytes(1 << 27)), CHART_CONTENT)
    layout.set_entries({CHART: layout.add(encode({"layers": [layer]}), MANIFEST)})
    with pytest.raises(BadInput, match="more than"):
        read_chart(layout)


@pytest.mark.parametrize(
    "document",
    [b"[]", b'"x"', b"[" * 5_000, b'{"layers": 7}', b'{"layers": [7]}', b'{"config": {}}', b'{"manifests": {"a": 1}}'],
)
def test_documents_of_another_form_are_named(tmp_path: Path, release: Path, document: bytes) -> None:
    layout = OciLayout(release / "oci")
    layout.set_entries({**layout.entries(), "odd:1": layout.add(document, MANIFEST)})
    with pytest.raises(BadInput, match="is incomplete"):
        extract_archive(hostile_archive(tmp_path, layout), tmp_path / "out")
    (layout.folder / "index.json").write_bytes(document)
    with pytest.raises(BadInput, match="is incomplete"):
        extract_archive(hostile_archive(tmp_path, layout), tmp_path / "again")


def test_blob_of_other_bytes_is_damaged_even_if_its_checksum_is_right(tmp_path: Path, release: Path) -> None:
    layout = OciLayout(release / "oci")
    layer = layout.document(layout.document(layout.entries()[f"sim:{VERSION}"]["digest"])["manifests"][0]["digest"])
    layout.path(layer["layers"][0]["digest"]).write_bytes(b"other")
    with pytest.raises(BadInput, match="missing or damaged"):
        extract_archive(hostile_archive(tmp_path, layout), tmp_path / "out")


def test_yaml_of_a_chart_whose_lists_name_each_other_is_refused(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 64))
    chart = ReleasedChart("1", {}, {"Chart.yaml": f"{bomb}version: *a63\n".encode()})
    with pytest.raises(BadInput, match="no text"):
        _ = chart.metadata_version


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

"""Parts of a release that a registry serves: images and chart as one OCI layout.

- ``oci/``: every image with an index of its architectures, and the chart.
- ``fairlead-VERSION.tgz``: the chart, for installations from a file.
- ``sbom/``: bill of materials and provenance of each image and architecture.

The chart as an OCI artefact, with the digests of the images inside.

The digests stand in a file of the chart, not in its values. Why: ``helm upgrade --reuse-values``
would keep those of the release before.

The kubectl plugin: an archive for every platform with Python, and its krew manifest.

The archive holds the wheel, the lock of what the wheel needs, and a script. At its first call the
script installs both into the user's cache. krew installs the archive by the manifest,
which names its SHA-256.

The wheel. It holds the product's packages and their data, no tests and no compiled code.

Texts of a release: its notes, from the changelog, and the licences of others' packages.
"""

import gzip
import io
import re
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from cyclonedx.model.component import ComponentType

from fairlead import __version__
from fairlead.distribution import ADDRESSES, DISTRIBUTION, WHEEL, RegisteredAddresses
from scripts.generators.image_locks import lock_part
from scripts.generators.package_licences import ALLOWED as ALLOWED_LICENCES
from scripts.generators.package_licences import FILE, licence_ids
from scripts.release.images.bill_of_materials import bill_of_materials, locked_packages
from scripts.release.images.components import COMMAND_LINE, ImageBuild, write_descriptions
from scripts.release.images.layers import OciImage, distinct_layers, image_documents, index_document
from scripts.release.oci import (
    CHART_CONFIG,
    CHART_CONTENT,
    CONFIG,
    INDEX,
    MANIFEST,
    Descriptor,
    OciLayout,
    descriptor,
    encode,
)
from scripts.release.release_run import ReleaseError, ReleaseRun, progress_step, sha256_of

CHART = Path(__file__).resolve().parents[2] / "charts" / "fairlead"
RELEASE_FILE = "files/release.yaml"
REPOSITORY = "charts/fairlead"
"""Repository of the chart, below the prefix of the images."""

LAYOUT = "oci"
"""Folder of the layout in a release. The names of its blobs are their checksums."""

LAUNCHER = Path(__file__).with_name("kubectl-fairlead.sh")
PLUGIN = "kubectl-fairlead"

OLDEST_PYTHON = "3.11.0"

NOTES = "RELEASE_NOTES.md"
UNRELEASED = "Unreleased"


def package_chart(version: str, digests: Mapping[str, str], registry: str | None) -> bytes:
    """Returns the chart as helm packages it, with the same bytes each time.

    version: of the chart and of the images.
    digests: component → digest of its image.
    registry: prefix of the images' names; None leaves it to the values.
    """
    head = chart_metadata(version)
    pinned: dict[str, Any] = {"images": dict(sorted(digests.items()))} | ({"registry": registry} if registry else {})
    files = {
        path.relative_to(CHART).as_posix(): path.read_bytes() for path in sorted(CHART.rglob("*")) if path.is_file()
    }
    files["Chart.yaml"] = yaml.safe_dump(head, sort_keys=False).encode()
    files[RELEASE_FILE] = b"# Written by the release of this chart.\n" + yaml.safe_dump(pinned).encode()
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("Chart.yaml", *sorted(files.keys() - {"Chart.yaml"})):
            entry = tarfile.TarInfo(f"{head['name']}/{name}")
            entry.size, entry.mode = len(files[name]), 0o644
            tar.addfile(entry, io.BytesIO(files[name]))
    zipped = io.BytesIO()
    with gzip.GzipFile(fileobj=zipped, mode="wb", compresslevel=9, filename="", mtime=0) as file:
        file.write(tarred.getvalue())
    return zipped.getvalue()


def chart_metadata(version: str) -> dict[str, Any]:
    head: dict[str, Any] = yaml.safe_load((CHART / "Chart.yaml").read_text())
    return head | {"version": version, "appVersion": version}


def add_chart_package(layout: OciLayout, version: str, package: bytes) -> Descriptor:
    """Stores a packaged chart as helm pushes it; returns the descriptor of its manifest."""
    head = chart_metadata(version)
    layout.add(encode(head), CHART_CONFIG)
    layout.add(package, CHART_CONTENT)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(encode(head), CHART_CONFIG),
        "layers": [descriptor(package, CHART_CONTENT)],
        "annotations": {
            "org.opencontainers.image.title": head["name"],
            "org.opencontainers.image.version": version,
            "org.opencontainers.image.description": head["description"],
        },
    }
    return layout.add(encode(manifest), MANIFEST)


def build_images(run: ReleaseRun) -> Iterator[Path]:
    """Writes the images of all architectures to the layout, and what describes them."""
    images: list[OciImage] = []
    for architecture in run.architectures:
        with progress_step(f"images for {architecture}, in all"):
            images += ImageBuild(tag=run.version).images(architecture)
    layout = OciLayout(run.folder / LAYOUT)
    with progress_step("layout"):
        add_images(layout, images, run.version)
    yield layout.folder / "index.json"
    folder = run.folder / "sbom"
    folder.mkdir(exist_ok=True)
    for image in images:
        yield from write_descriptions(image, folder, f"{image.component}-{run.version}-{image.architecture}")


def build_chart(run: ReleaseRun) -> Iterator[Path]:
    """Writes the chart with the digests of the images to the layout, and as a file.

    Raises ReleaseError where the images of this version are not in the layout.
    """
    layout = OciLayout(run.folder / LAYOUT)
    yield add_chart(layout, run.version, run.registry)
    yield layout.folder / "index.json"


def add_images(layout: OciLayout, images: Sequence[OciImage], version: str) -> None:
    """Makes a layout hold these images under one version, and nothing else."""
    for layer in distinct_layers(images):
        layout.add_file(layer.path, f"sha256:{layer.digest}")
    entries: dict[str, Descriptor] = {}
    for component in sorted({image.component for image in images}):
        made = [image for image in images if image.component == component]
        for image in made:
            config, manifest = image_documents(image)
            layout.add(config, CONFIG)
            layout.add(manifest, MANIFEST)
        notes = {"org.opencontainers.image.title": f"fairlead {component}"}
        notes |= {"org.opencontainers.image.version": version}
        entries[f"{component}:{version}"] = layout.add(index_document(made, notes), INDEX)
    layout.set_entries(entries)
    layout.prune()


def add_chart(layout: OciLayout, version: str, registry: str | None) -> Path:
    """Adds the chart to a layout that has the images of this version; returns the packaged file,
    which is in the same folder.

    registry: prefix of the images' names; None leaves it to the values.
    """
    entries = layout.entries()
    digests = image_digests(entries, version)
    packaged = package_chart(version, digests, registry)
    file = layout.folder.parent / f"fairlead-{version}.tgz"
    file.write_bytes(packaged)
    name = f"{REPOSITORY}:{version}"
    layout.set_entries({**entries, name: add_chart_package(layout, version, packaged)})
    layout.prune()
    return file


def image_digests(entries: Mapping[str, Descriptor], version: str) -> dict[str, str]:
    """Returns component → digest of each image in a layout that pods run.

    Raises ReleaseError where there is none.
    """
    found = {
        name.removesuffix(f":{version}"): described["digest"]
        for name, described in entries.items()
        if name.endswith(f":{version}") and not name.startswith(f"{REPOSITORY}:")
    }
    if not found:
        raise ReleaseError(f"there are no images of version {version}: make the part `images` first")
    found.pop(COMMAND_LINE, None)
    return found


def build_plugin(run: ReleaseRun) -> Iterator[Path]:
    """Writes the archive and the manifest; needs the wheel."""
    archive = run.folder / f"{PLUGIN}-{run.version}.tar.gz"
    archive.write_bytes(plugin_archive(run))
    yield archive
    manifest = run.folder / f"{PLUGIN}-{run.version}.krew.yaml"
    document = krew_manifest(run.version, archive.name, sha256_of(archive), ADDRESSES)
    manifest.write_text(yaml.safe_dump(document, sort_keys=False, width=130))
    yield manifest


def plugin_archive(run: ReleaseRun) -> bytes:
    """Returns the archive. Its members have no times and no owners."""
    wheel = run.folder / WHEEL
    if not wheel.exists():
        raise ReleaseError(f"{wheel} is missing: make the part `wheel` first")
    project = tomllib.loads((run.root / "pyproject.toml").read_text())["project"]
    lock = lock_part((run.root / "requirements" / "dev.txt").read_text(), project["dependencies"])
    launcher = LAUNCHER.read_text().replace("@VERSION@", run.version).replace("@WHEEL@", WHEEL)
    members = {
        PLUGIN: (launcher.encode(), 0o755),
        "LICENSE": ((run.root / "LICENSE").read_bytes(), 0o644),
        WHEEL: (wheel.read_bytes(), 0o644),
        "requirements.txt": (lock.encode(), 0o644),
    }
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, (content, mode) in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def krew_manifest(version: str, archive: str, sha256: str, addresses: RegisteredAddresses) -> dict[str, object]:
    """Returns the plugin's manifest.

    Without a registered address of releases, ``uri`` is the name of the file alone:
    ``kubectl krew install --manifest … --archive …`` does not read it.
    """
    spec: dict[str, object] = {"version": f"v{version}"}
    if home := addresses.site or addresses.repository:
        spec["homepage"] = home
    return {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": "fairlead"},
        "spec": spec
        | {
            "shortDescription": "Inspect LLM serving with Fairlead",
            "description": (
                "Shows models, pools and instances, explains routes and replica counts, "
                "checks an installation and follows rollouts."
            ),
            "caveats": "Needs Python 3.11 or later. The first call installs the plugin's packages, with their hashes checked.",
            "platforms": [
                {
                    "selector": {"matchExpressions": [{"key": "os", "operator": "In", "values": ["linux", "darwin"]}]},
                    "uri": f"{addresses.releases}/{archive}" if addresses.releases else archive,
                    "sha256": sha256,
                    "bin": PLUGIN,
                }
            ],
        },
    }


def build_wheel(run: ReleaseRun) -> Iterator[Path]:
    """Builds the wheel with the locked hatchling: the same sources give the same bytes."""
    with tempfile.TemporaryDirectory(dir=run.folder) as work:
        run.run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", work)
        made = Path(work) / WHEEL
        if not made.exists():
            raise ReleaseError(f"the build wrote {[path.name for path in Path(work).iterdir()]} instead of {WHEEL}")
        yield made.replace(run.folder / WHEEL)
    folder = run.folder / "sbom"
    folder.mkdir(exist_ok=True)
    bill = folder / f"{WHEEL.removesuffix('.whl')}.cdx.json"
    bill.write_text(wheel_bill(run.root))
    yield bill


def wheel_bill(root: Path) -> str:
    """Returns the bill of materials of the wheel: the packages that it brings, as locked."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lock = lock_part((root / "requirements" / "dev.txt").read_text(), project["dependencies"])
    packages = locked_packages(lock, OLDEST_PYTHON)
    return bill_of_materials(f"{DISTRIBUTION}:{__version__}", [], packages, kind=ComponentType.LIBRARY)


def write_texts(run: ReleaseRun) -> Iterator[Path]:
    """Writes the notes, LICENSE, NOTICE and the licences of the packages that Fairlead needs."""
    notes = run.folder / NOTES
    notes.write_text(release_notes((run.root / "CHANGELOG.md").read_text(), run.version))
    yield notes
    for name in ("LICENSE", "NOTICE", FILE):
        copy = run.folder / name
        copy.write_bytes((run.root / name).read_bytes())
        yield copy
    refused = refused_licences((run.root / FILE).read_text())
    if refused:
        raise ReleaseError(f"licences that are not allowed: {', '.join(refused)}")


def release_notes(changelog: str, version: str) -> str:
    """Returns what the changelog says of a version, else of what is not released.

    Links to files of the repository become plain text: the notes are read elsewhere.
    """
    sections = dict(re.findall(r"^## \[?([^\]\s]+)\]?[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL))
    body = sections.get(version) or sections.get(UNRELEASED)
    if not body or not body.strip():
        raise ReleaseError(f"CHANGELOG.md has no section for {version} and none that is called {UNRELEASED}")
    plain = re.sub(r"\[([^\]]+)\]\((?!https?://)[^)]*\)", r"\1", body)
    return f"# Fairlead {version}\n\n{plain.strip()}\n"


def refused_licences(text: str) -> list[str]:
    lines = re.findall(r"^([a-z0-9-]+ \S+): (.+)$", text.partition("=" * 80)[0], re.MULTILINE)
    return [f"{package}: {expression}" for package, expression in lines if licence_ids(expression) - ALLOWED_LICENCES]

"""The file for a cluster without internet: an OCI layout with chart and images, CRDs, checksums.

- ``oci-layout``, ``index.json``, ``blobs/``: an OCI layout, which other tools read, too.
- ``crds/``: the CRDs of the chart.
- ``SHA256SUMS``: of everything else, for ``sha256sum -c``.

The same artefacts give the same bytes.
"""

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from fairlead.errors import BadInput
from fairlead_cli.oci.documents import CHART_CONTENT, Descriptor
from fairlead_cli.oci.layout import LayoutError, OciLayout, file_digest

CHART: Final = "charts/fairlead"
"""Repository of the chart, below the prefix of the images."""
CHECKSUMS: Final = "SHA256SUMS"
RELEASE_FILE: Final = "files/release.yaml"


@dataclass(frozen=True, slots=True)
class ReleasedChart:
    """The chart of a release.

    version: in the name under which a layout has it.
    descriptor: of its manifest.
    files: path → content.
    """

    version: str
    descriptor: Descriptor
    files: Mapping[str, bytes]

    @property
    def metadata_version(self) -> str:
        """Returns the version in its Chart.yaml."""
        return str(yaml.safe_load(self.files["Chart.yaml"])["version"])

    @property
    def registry(self) -> str:
        """Returns the prefix of its images' names; empty where the release has none."""
        return str(self._pinned().get("registry", ""))

    @property
    def images(self) -> dict[str, str]:
        """Returns component → digest of its image."""
        return {str(name): str(digest) for name, digest in self._pinned().get("images", {}).items()}

    @property
    def crds(self) -> dict[str, bytes]:
        """Returns file name → CRD."""
        return {path.removeprefix("crds/"): data for path, data in self.files.items() if path.startswith("crds/")}

    def _pinned(self) -> dict[str, Any]:
        return yaml.safe_load(self.files.get(RELEASE_FILE, b"")) or {}


def read_chart(layout: OciLayout) -> ReleasedChart:
    """Returns the chart of a layout. Raises BadInput where there is none, or several."""
    found = {name: described for name, described in layout.entries().items() if name.startswith(f"{CHART}:")}
    if len(found) != 1:
        raise BadInput(f"{layout.folder} has {len(found)} charts of Fairlead, not one")
    ((name, described),) = found.items()
    layers = layout.document(described["digest"])["layers"]
    content = next((layer for layer in layers if layer["mediaType"] == CHART_CONTENT), None)
    if content is None:
        raise BadInput(f"{name} is no chart")
    files = {}
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layout.read(content["digest"])))) as tar:
        for entry in tar:
            data = tar.extractfile(entry)
            if data is not None:
                files[entry.name.partition("/")[2]] = data.read()
    return ReleasedChart(name.partition(":")[2], described, files)


def write_archive(layout: OciLayout, target: Path) -> int:
    """Writes the archive of a layout with one chart; returns the number of artefacts."""
    crds = read_chart(layout).crds
    blobs = sorted({part["digest"] for entry in layout.entries().values() for part in layout.closure(entry)})
    small = {name: (layout.folder / name).read_bytes() for name in ("index.json", "oci-layout")}
    small |= {f"crds/{name}": data for name, data in crds.items()}
    lines = [(_sha256(data), name) for name, data in small.items()]
    lines += [(digest.removeprefix("sha256:"), f"blobs/{digest.replace(':', '/')}") for digest in blobs]
    small[CHECKSUMS] = "".join(f"{value}  {name}\n" for value, name in sorted(lines, key=lambda line: line[1])).encode()
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in sorted(small.items()):
            tar.addfile(_entry(name, len(data)), io.BytesIO(data))
        for digest in blobs:
            path = layout.path(digest)
            with path.open("rb") as file:
                tar.addfile(_entry(f"blobs/{digest.replace(':', '/')}", path.stat().st_size), file)
    partial.replace(target)
    return len(layout.entries())


def extract_archive(source: Path, folder: Path) -> OciLayout:
    """Unpacks an archive and checks that it is complete and undamaged.

    Raises BadInput with the first problem.
    """
    try:
        with tarfile.open(source) as tar:
            tar.extractall(folder, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise BadInput(f"{source} cannot be read: {error}") from error
    if not (folder / CHECKSUMS).is_file():
        raise BadInput(f"{source} is no archive of `fairlead airgap create`: it has no {CHECKSUMS}")
    listed = dict(_checksums((folder / CHECKSUMS).read_text()))
    for name, value in listed.items():
        path = folder / name
        if not path.is_file() or file_digest(path) != f"sha256:{value}":
            raise BadInput(f"{name} of {source} is missing or damaged", hint="Copy the archive again.")
    layout = OciLayout(folder)
    try:
        for entry in layout.entries().values():
            for part in layout.closure(entry):
                if f"blobs/{part['digest'].replace(':', '/')}" not in listed:
                    raise LayoutError(f"the blob {part['digest']} is missing")
    except LayoutError as error:
        raise BadInput(f"{source} is incomplete: {error}", hint="Copy the archive again.") from error
    return layout


def _checksums(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        value, _, name = line.partition("  ")
        yield name, value


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry

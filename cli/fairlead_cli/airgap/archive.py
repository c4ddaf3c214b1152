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
import re
import shutil
import tarfile
import zlib
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
_FILE_NAME: Final = re.compile(
    r"oci-layout|index\.json|SHA256SUMS|crds/[\w-][\w.-]*|blobs/sha256/[0-9a-f]{64}", re.ASCII
)
"""Names of the files of an archive."""
_MAX_FILES: Final = 16_384
_MAX_CHART_BYTES: Final = 64 << 20
"""Bytes of an unpacked chart."""


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
        """Returns the version in its Chart.yaml. Raises BadInput where it is none."""
        return _text(self._document("Chart.yaml"), "version")

    @property
    def registry(self) -> str:
        """Returns the prefix of its images' names; empty where the release has none."""
        return _text(self._document(RELEASE_FILE), "registry")

    @property
    def images(self) -> dict[str, str]:
        """Returns component → digest of its image."""
        found = self._document(RELEASE_FILE).get("images", {})
        if not isinstance(found, dict):
            raise BadInput(f"{RELEASE_FILE} of the chart names no images")
        return {str(name): _text(found, name) for name in found if isinstance(name, str)}

    @property
    def crds(self) -> dict[str, bytes]:
        """Returns file name → CRD."""
        return {path.removeprefix("crds/"): data for path, data in self.files.items() if path.startswith("crds/")}

    def _document(self, path: str) -> dict[str, Any]:
        try:
            found = yaml.safe_load(self.files.get(path, b""))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise BadInput(f"{path} of the chart cannot be read") from error
        return found if isinstance(found, dict) else {}


def _text(document: Mapping[str, Any], name: str) -> str:
    """Returns a text of a document; empty without one.

    Why no other values: YAML can nest lists so that their text has any length.
    """
    found = document.get(name, "")
    if not isinstance(found, str):
        raise BadInput(f"{name} of the chart is no text")
    return found


def read_chart(layout: OciLayout) -> ReleasedChart:
    """Returns the chart of a layout. Raises BadInput where there is none, or several."""
    found = {name: described for name, described in layout.entries().items() if name.startswith(f"{CHART}:")}
    if len(found) != 1:
        raise BadInput(f"{layout.folder} has {len(found)} charts of Fairlead, not one")
    ((name, described),) = found.items()
    content = next((part for part in layout.closure(described) if part["mediaType"] == CHART_CONTENT), None)
    if content is None:
        raise BadInput(f"{name} is no chart")
    try:
        files = _chart_files(layout.read(content["digest"]))
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        raise BadInput(f"the chart {name} cannot be read: {error}") from error
    return ReleasedChart(name.partition(":")[2], described, files)


def _chart_files(packed: bytes) -> dict[str, bytes]:
    """Returns path → content of a packed chart. Raises ValueError if it is too large."""
    with gzip.open(io.BytesIO(packed)) as stream:
        unpacked = stream.read(_MAX_CHART_BYTES + 1)
    if len(unpacked) > _MAX_CHART_BYTES:
        raise ValueError(f"it has more than {_MAX_CHART_BYTES:,} bytes")
    files = {}
    with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
        for entry in tar:
            data = tar.extractfile(entry) if _is_plain_file(entry) else None
            if data is not None:
                files[entry.name.partition("/")[2]] = data.read()
    return files


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
        with tarfile.open(source, "r:") as tar:
            names = _extract_files(tar, folder)
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        hint = "Give the file that `fairlead airgap create` wrote, not compressed."
        raise BadInput(f"{source} cannot be read: {error}", hint=hint) from error
    if not (folder / CHECKSUMS).is_file():
        raise BadInput(f"{source} is no archive of `fairlead airgap create`: it has no {CHECKSUMS}")
    listed = dict(_checksums((folder / CHECKSUMS).read_text(errors="replace")))
    if unlisted := sorted(names - {CHECKSUMS} - listed.keys()):
        raise BadInput(f"{unlisted[0]} of {source} is not in {CHECKSUMS}", hint="Copy the archive again.")
    for name, value in listed.items():
        path = folder / name
        is_expected = _FILE_NAME.fullmatch(name) and path.is_file() and file_digest(path) == f"sha256:{value}"
        if not is_expected or name not in (f"blobs/sha256/{value}", *_without_digest(name)):
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


def _extract_files(tar: tarfile.TarFile, folder: Path) -> set[str]:
    """Writes the files of an archive and returns their names. Raises ValueError for an entry that
    no archive has.

    Why: a link, a sparse file or another path could reach or fill other places.
    """
    names: set[str] = set()
    for entry in tar:
        if not _is_plain_file(entry) or not _FILE_NAME.fullmatch(entry.name) or entry.name in names:
            raise ValueError(f"it has the entry {entry.name[:200]!r}, which no such archive has")
        names.add(entry.name)
        if len(names) > _MAX_FILES:
            raise ValueError(f"it has more than {_MAX_FILES:,} files")
        data = tar.extractfile(entry)
        assert data is not None  # it is a file
        target = folder / entry.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(data, file)
    return names


def _is_plain_file(entry: tarfile.TarInfo) -> bool:
    return entry.isreg() and not entry.issparse()


def _without_digest(name: str) -> tuple[str, ...]:
    """Returns the name, unless it is that of a blob, which has its digest."""
    return () if name.startswith("blobs/") else (name,)


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

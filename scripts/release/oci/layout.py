"""OCI layouts: folders with artefacts, their blobs stored once.

An entry of a layout has a name such as ``gateway:0.2.0``: the repository below a registry's prefix,
and the tag.

Source: the OCI image layout specification, version 1.1.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairlead.errors import BadInput
from scripts.release.oci.documents import MANIFESTS, REF_NAME, Descriptor, descriptor, encode, references


class LayoutError(BadInput):
    """Raised where a layout lacks a blob or has a wrong one."""


class OciLayout:
    """A layout in ``folder``, which is made where it is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> dict[str, Descriptor]:
        """Returns name → descriptor of each artefact, by name."""
        index = self.folder / "index.json"
        manifests = json.loads(index.read_bytes())["manifests"] if index.is_file() else []
        found = {one["annotations"][REF_NAME]: one for one in manifests}
        return {
            name: {key: value for key, value in found[name].items() if key != "annotations"} for name in sorted(found)
        }

    def set_entries(self, entries: Mapping[str, Descriptor]) -> None:
        """Names these artefacts, and no others, as the content of the layout."""
        manifests = [entries[name] | {"annotations": {REF_NAME: name}} for name in sorted(entries)]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "oci-layout").write_bytes(encode({"imageLayoutVersion": "1.0.0"}))
        (self.folder / "index.json").write_bytes(encode({"schemaVersion": 2, "manifests": manifests}))

    def add(self, data: bytes, media_type: str) -> Descriptor:
        """Stores a blob; returns its descriptor."""
        described = descriptor(data, media_type)
        target = self._new(described["digest"])
        if target is not None:
            target.write_bytes(data)
        return described

    def add_file(self, path: Path, digest: str) -> None:
        """Stores a file as the blob of this digest, by a link where that is possible."""
        target = self._new(digest)
        if target is None:
            return
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)

    def path(self, digest: str) -> Path:
        """Returns where a blob is."""
        return self.folder / "blobs" / digest.replace(":", "/")

    def document(self, digest: str) -> dict[str, Any]:
        """Returns an index, a manifest or a config."""
        found: dict[str, Any] = json.loads(self.read(digest))
        return found

    def read(self, digest: str) -> bytes:
        """Returns a small blob. Raises LayoutError where it is missing or damaged."""
        path = self.path(digest)
        if not path.is_file():
            raise LayoutError(f"the blob {digest} is missing")
        if file_digest(path) != digest:
            raise LayoutError(f"the blob {digest} is damaged")
        return path.read_bytes()

    def closure(self, described: Descriptor) -> Iterator[Descriptor]:
        """Yields everything that an artefact consists of, parts before what names them, itself
        last.

        Raises LayoutError for a document that is missing or damaged.
        """
        if described["mediaType"] in MANIFESTS:
            for part in references(self.document(described["digest"])):
                yield from self.closure(part)
        yield described

    def prune(self) -> None:
        """Removes blobs that no artefact consists of."""
        wanted = {part["digest"] for entry in self.entries().values() for part in self.closure(entry)}
        for path in (self.folder / "blobs" / "sha256").iterdir():
            if f"sha256:{path.name}" not in wanted:
                path.unlink()

    def _new(self, digest: str) -> Path | None:
        """The path for a new blob; None where it is there."""
        target = self.path(digest)
        if target.exists():
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def file_digest(path: Path) -> str:
    """Returns the digest of a file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"

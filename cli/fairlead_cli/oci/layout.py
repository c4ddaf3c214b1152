"""OCI layouts: folders with artefacts, their blobs stored once, and archives of such folders.

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
from typing import Any, Final

from fairlead_cli.oci.documents import MANIFESTS, REF_NAME, Descriptor, descriptor, digest_of, encode, references

_CHUNK: Final = 1 << 20


class LayoutError(Exception):
    """Raised where a layout lacks a blob or has a wrong one."""


class OciLayout:
    """A layout in ``folder``, which is made where it is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> dict[str, Descriptor]:
        """Returns name → descriptor of each artefact, by name."""
        found = {one["annotations"][REF_NAME]: one for one in self._index() if REF_NAME in one.get("annotations", {})}
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
        """Returns where a blob is. Raises LayoutError for a digest that is none."""
        algorithm, _, value = digest.partition(":")
        if algorithm != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise LayoutError(f"{digest!r} is not the SHA-256 digest of a blob")
        return self.folder / "blobs" / algorithm / value

    def document(self, digest: str) -> dict[str, Any]:
        """Returns an index, a manifest or a config."""
        found = json.loads(self.read(digest))
        if not isinstance(found, dict):
            raise LayoutError(f"{digest} is no document of an image")
        return found

    def read(self, digest: str) -> bytes:
        """Returns a blob of a few kilobytes. Raises LayoutError where it is missing or damaged."""
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError:
            raise LayoutError(f"the blob {digest} is missing") from None
        if digest_of(data) != digest:
            raise LayoutError(f"the blob {digest} is damaged")
        return data

    def closure(self, described: Descriptor) -> Iterator[Descriptor]:
        """Yields everything that an artefact consists of, parts before what names them, itself
        last."""
        if described["mediaType"] in MANIFESTS:
            for part in references(self.document(described["digest"])):
                yield from self.closure(part)
        yield described

    def verify(self) -> int:
        """Checks that every artefact is complete and undamaged; returns the number of blobs.

        Raises LayoutError with the first blob that is not.
        """
        wanted = {part["digest"] for entry in self.entries().values() for part in self.closure(entry)}
        for digest in sorted(wanted):
            if not self.path(digest).is_file():
                raise LayoutError(f"the blob {digest} is missing")
            if file_digest(self.path(digest)) != digest:
                raise LayoutError(f"the blob {digest} is damaged")
        return len(wanted)

    def prune(self) -> None:
        """Removes blobs that no artefact consists of."""
        wanted = {part["digest"] for entry in self.entries().values() for part in self.closure(entry)}
        for path in (self.folder / "blobs" / "sha256").iterdir():
            if f"sha256:{path.name}" not in wanted:
                path.unlink()

    def _index(self) -> list[Descriptor]:
        try:
            found = json.loads((self.folder / "index.json").read_text())
        except FileNotFoundError:
            return []
        return list(found["manifests"])

    def _new(self, digest: str) -> Path | None:
        """The path for a new blob; None where it is there."""
        target = self.path(digest)
        if target.exists():
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def file_digest(path: Path) -> str:
    """Returns the digest of a file, read in pieces."""
    seen = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            seen.update(piece)
    return f"sha256:{seen.hexdigest()}"

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

from fairlead.errors import BadInput
from fairlead_cli.oci.documents import (
    MANIFESTS,
    REF_NAME,
    Descriptor,
    descriptor,
    descriptors,
    digest_of,
    encode,
    references,
)
from fairlead_cli.oci.reference import is_artefact_name

_CHUNK: Final = 1 << 20
MAX_DOCUMENT_BYTES: Final = 16 << 20
"""Bytes of an index, a manifest, a config or a chart."""
MAX_NESTING: Final = 8
"""Indexes and manifests from a name to a blob. An image for several architectures has two."""


class LayoutError(BadInput):
    """Raised where a layout lacks a blob or has a wrong one."""


class OciLayout:
    """A layout in ``folder``, which is made where it is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> dict[str, Descriptor]:
        """Returns name → descriptor of each artefact, by name.

        Raises LayoutError for a name that is no repository and tag: it would lead elsewhere in a
        registry.
        """
        found = {name: one for one in self._index() if (name := _ref_name(one)) is not None}
        if wrong := next((name for name in found if not is_artefact_name(name)), None):
            raise LayoutError(f"{wrong!r} is no name of an artefact")
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
        return _parse_document(self.read(digest), digest)

    def read(self, digest: str) -> bytes:
        """Returns a small blob. Raises LayoutError where it is missing, damaged or too large."""
        try:
            with self.path(digest).open("rb") as file:
                data = file.read(MAX_DOCUMENT_BYTES + 1)
        except FileNotFoundError:
            raise LayoutError(f"the blob {digest} is missing") from None
        if len(data) > MAX_DOCUMENT_BYTES:
            raise LayoutError(f"the blob {digest} has more than {MAX_DOCUMENT_BYTES:,} bytes")
        if digest_of(data) != digest:
            raise LayoutError(f"the blob {digest} is damaged")
        return data

    def closure(self, described: Descriptor) -> Iterator[Descriptor]:
        """Yields everything that an artefact consists of, parts before what names them, itself
        last. A part that is named several times is yielded once.

        Raises LayoutError for a document that is missing, damaged or of another form.

        Why: n indexes that each name the next one twice have 2ⁿ paths to the last.
        """
        yield from self._parts(described, set(), 0)

    def _parts(self, described: Descriptor, seen: set[tuple[str, str]], depth: int) -> Iterator[Descriptor]:
        key = described["mediaType"], described["digest"]
        if key in seen:
            return
        seen.add(key)
        if depth > MAX_NESTING:
            raise LayoutError(f"{described['digest']} is nested deeper than {MAX_NESTING} levels")
        if described["mediaType"] in MANIFESTS:
            document = self.document(described["digest"])
            try:
                parts = list(references(document))
            except ValueError as error:
                raise LayoutError(f"{described['digest']}: {error}") from error
            for part in parts:
                yield from self._parts(part, seen, depth + 1)
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
            with (self.folder / "index.json").open("rb") as file:
                data = file.read(MAX_DOCUMENT_BYTES)
        except FileNotFoundError:
            return []
        try:
            return descriptors(_parse_document(data, "index.json").get("manifests"))
        except ValueError as error:
            raise LayoutError(f"index.json: {error}") from error

    def _new(self, digest: str) -> Path | None:
        """The path for a new blob; None where it is there."""
        target = self.path(digest)
        if target.exists():
            return None
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def _ref_name(described: Descriptor) -> str | None:
    annotations = described.get("annotations")
    name = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return None if name is None else str(name)


def _parse_document(data: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise LayoutError(f"{name} is no document of an image")
    return found


def file_digest(path: Path) -> str:
    """Returns the digest of a file, read in pieces."""
    seen = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            seen.update(piece)
    return f"sha256:{seen.hexdigest()}"

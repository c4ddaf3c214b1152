"""Image layers: a folder becomes a compressed tar with the same bytes each time, kept in a store.

Entries are in order, belong to root and have no times. Any user can read them, and only ``/tmp`` is
writable.
"""

import fcntl
import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.runtime import compiled_build
from scripts.release.progress import print_progress, progress_step

RETENTION_SECONDS = 14 * 86_400.0
"""Seconds for which an unused layer is kept."""


def cache_folder() -> Path:
    """Returns the folder of built files, outside the tree."""
    return compiled_build.cache_folder(os.environ)


@contextmanager
def build_lock(name: str) -> Iterator[None]:
    """Holds a lock of this machine, which ends with its holder, however that ends."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print_progress(f"waiting for another build ({name}) ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """A layer in a file: the digest of its compressed bytes, and of the tar inside."""

    path: Path
    digest: str
    diff: str

    @property
    def size(self) -> int:
        """The size of the compressed file in bytes."""
        return self.path.stat().st_size


def write_layer(root: Path, target: Path) -> ImageLayer:
    """Writes the tree below ``root`` as a compressed layer to ``target``, and its digests to a file
    in the same folder."""
    diff = hashlib.sha256()
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    with (
        partial.open("wb") as file,
        gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6, filename="", mtime=0) as zipped,
        tarfile.open(fileobj=_Hashing(zipped, diff), mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(root.rglob("*")):
            tar.add(path, arcname=str(path.relative_to(root)), recursive=False, filter=_normalize)
    with partial.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    partial.replace(target)
    _digests_of(target).write_text(json.dumps({"digest": digest, "diff": diff.hexdigest()}))
    return ImageLayer(target, digest, diff.hexdigest())


def read_layer(target: Path) -> ImageLayer | None:
    """A layer that was written before, if it is there."""
    try:
        return ImageLayer(target, **json.loads(_digests_of(target).read_text()))
    except FileNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class LayerStore:
    """The store of image layers."""

    folder: Path

    def layer(self, name: str, key: str, fill: Callable[[Path], None]) -> ImageLayer:
        """The layer of this name and content, made by ``fill`` in an empty folder where it is not
        there."""
        target = self.folder / f"{name}-{key}.tar.gz"
        if found := read_layer(target):
            os.utime(target)
            return found
        with progress_step(f"layer {name}"), tempfile.TemporaryDirectory(dir=self.folder) as work:
            fill(Path(work))
            return write_layer(Path(work), target)

    def prune(self) -> None:
        """Removes layers that were not used for long."""
        for path in self.folder.glob("*.tar.gz"):
            if time.time() - path.stat().st_mtime > RETENTION_SECONDS:
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)


@contextmanager
def layer_store() -> Iterator[LayerStore]:
    """The store of this machine, for one build at a time."""
    with build_lock("release-layers"):
        folder = cache_folder() / "layers"
        folder.mkdir(parents=True, exist_ok=True)
        yield LayerStore(folder)


class _Hashing(io.RawIOBase):
    """Hashes what passes through to ``into``."""

    def __init__(self, into: gzip.GzipFile, seen: "hashlib._Hash") -> None:
        self._into, self._seen = into, seen

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._seen.update(data)
        return self._into.write(data)


def _normalize(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    if entry.isdir():
        entry.mode = 0o1777 if entry.name == "tmp" else 0o755
    elif entry.isfile():
        entry.mode = 0o755 if entry.mode & 0o100 else 0o644
    return entry


def _digests_of(target: Path) -> Path:
    return target.with_suffix(".json")

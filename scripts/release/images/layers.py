"""Image layers: a folder becomes a compressed tar with the same bytes each time, kept in a store.

Entries are in order, belong to root and have no times. Any user can read them, and only ``/tmp`` is
writable.

OCI images from layers: their configs, manifests and indexes, and archives of them.

The same layers and settings give the same bytes, and so the same digests.

Source: the OCI image format specification, version 1.1.
"""

import fcntl
import gzip
import hashlib
import io
import json
import os
import platform
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.runtime import compiled_build
from scripts.release.oci import CONFIG, INDEX, LAYER, MANIFEST, Descriptor, descriptor, encode
from scripts.release.release_run import print_progress, progress_step

RETENTION_SECONDS = 14 * 86_400.0
"""Seconds for which an unused layer is kept."""

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""This machine's name of an architecture → that of images and of Debian."""


def cache_folder() -> Path:
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


def machine_architecture() -> str:
    return ARCHITECTURES.get(platform.machine(), platform.machine())


@dataclass(frozen=True, slots=True)
class OciImage:
    """An image of one architecture.

    name: with registry and tag.
    config: its settings, as the runtime reads them.
    """

    name: str
    layers: Sequence[ImageLayer]
    config: Mapping[str, Any]
    architecture: str = field(default_factory=machine_architecture)

    @property
    def component(self) -> str:
        return self.name.rpartition(":")[0].rpartition("/")[2]


def manifest_digest(image: OciImage) -> str:
    return hashlib.sha256(image_documents(image)[1]).hexdigest()


def image_documents(image: OciImage) -> tuple[bytes, bytes]:
    """Returns the config and the manifest of an image as bytes."""
    config = encode(_describe(image))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(config, CONFIG),
        "layers": [
            {"mediaType": LAYER, "digest": f"sha256:{layer.digest}", "size": layer.size} for layer in image.layers
        ],
    }
    return config, encode(manifest)


def manifest_descriptor(image: OciImage) -> Descriptor:
    """Returns the descriptor of an image's manifest, with its platform."""
    variant = {"variant": "v8"} if image.architecture == "arm64" else {}
    wanted = {"architecture": image.architecture, "os": "linux", **variant}
    return descriptor(image_documents(image)[1], MANIFEST) | {"platform": wanted}


def index_document(images: Sequence[OciImage], annotations: Mapping[str, str]) -> bytes:
    """Returns the index of one component's images, an entry per architecture."""
    ordered = sorted(images, key=lambda image: image.architecture)
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest_descriptor(image) for image in ordered]}
    return encode(index | {"annotations": dict(annotations)})


def write_archive(target: Path, images: Sequence[OciImage]) -> None:
    """Writes one archive with all of these images, which containerd, docker and kind load. What
    they share is in it once."""
    small: dict[str, bytes] = {}
    manifests = []
    for image in images:
        config, manifest = image_documents(image)
        for data in (config, manifest):
            small[f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"] = data
        names = {
            "io.containerd.image.name": image.name,
            "org.opencontainers.image.ref.name": image.name.rpartition(":")[2],
        }
        manifests.append(descriptor(manifest, MANIFEST) | {"annotations": names})
    small["oci-layout"] = encode({"imageLayoutVersion": "1.0.0"})
    small["index.json"] = encode({"schemaVersion": 2, "manifests": manifests})
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    with tarfile.open(partial, "w") as tar:
        for path, data in sorted(small.items()):
            tar.addfile(_entry(path, len(data)), io.BytesIO(data))
        for layer in distinct_layers(images):
            with layer.path.open("rb") as file:
                tar.addfile(_entry(f"blobs/sha256/{layer.digest}", layer.size), file)
    partial.replace(target)


def distinct_layers(images: Iterable[OciImage]) -> Iterator[ImageLayer]:
    layers = {layer.digest: layer for image in images for layer in image.layers}
    yield from (layers[digest] for digest in sorted(layers))


def _describe(image: OciImage) -> dict[str, object]:
    return {
        "architecture": image.architecture,
        "os": "linux",
        "config": dict(image.config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff}" for layer in image.layers]},
        "history": [{"created_by": _layer_name(layer)} for layer in image.layers],
    }


def _layer_name(layer: ImageLayer) -> str:
    name = layer.path.name.partition(".")[0]
    return name.rpartition("-")[0] or name


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry

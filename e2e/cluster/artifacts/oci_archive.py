"""Image archives without a container engine: folders become layers, layers an OCI archive that
containerd, docker and kind load.

The same content gives the same bytes: entries in order, owner root, no times. Everything is
readable by whatever user a container is given, and nothing but ``/tmp`` is writable.
"""

import gzip
import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


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
        gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, filename="", mtime=0) as zipped,
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
class OciImage:
    """An image: ``name`` with registry and tag, its layers, and its settings as the runtime reads
    them."""

    name: str
    layers: Sequence[ImageLayer]
    config: Mapping[str, Any]


def manifest_digest(image: OciImage) -> str:
    """Returns the SHA-256 of the image's manifest in hexadecimal, by which registries know it."""
    return hashlib.sha256(_documents(image)[1]).hexdigest()


def write_archive(target: Path, images: Sequence[OciImage]) -> None:
    """One archive with all of these; what they share is in it once."""
    small: dict[str, bytes] = {}
    manifests = []
    for image in images:
        config, manifest = _documents(image)
        for data in (config, manifest):
            small[f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"] = data
        names = {
            "io.containerd.image.name": image.name,
            "org.opencontainers.image.ref.name": image.name.rpartition(":")[2],
        }
        manifests.append(_descriptor(manifest, _MANIFEST) | {"annotations": names})
    small["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    small["index.json"] = _encode({"schemaVersion": 2, "manifests": manifests})
    layers = {layer.digest: layer for image in images for layer in image.layers}
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    with tarfile.open(partial, "w") as tar:
        for path, data in sorted(small.items()):
            tar.addfile(_entry(path, len(data)), io.BytesIO(data))
        for digest, layer in sorted(layers.items()):
            with layer.path.open("rb") as file:
                tar.addfile(_entry(f"blobs/sha256/{digest}", layer.size), file)
    partial.replace(target)


def _documents(image: OciImage) -> tuple[bytes, bytes]:
    """The config and the manifest of an image as bytes."""
    config = _encode(_describe(image))
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _descriptor(config, _CONFIG),
        "layers": [
            {"mediaType": _LAYER, "digest": f"sha256:{layer.digest}", "size": layer.size} for layer in image.layers
        ],
    }
    return config, _encode(manifest)


def _encode(document: object) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


def _descriptor(data: bytes, kind: str) -> dict[str, object]:
    return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}


def _describe(image: OciImage) -> dict[str, object]:
    return {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": dict(image.config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff}" for layer in image.layers]},
        "history": [{"created_by": layer.path.name} for layer in image.layers],
    }


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


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry


def _digests_of(target: Path) -> Path:
    return target.with_suffix(".json")

"""OCI images from layers: their configs, manifests and indexes, and archives of them.

The same layers and settings give the same bytes, and so the same digests.

Source: the OCI image format specification, version 1.1.
"""

import hashlib
import io
import os
import platform
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.release.images.layers import ImageLayer
from scripts.release.oci.documents import CONFIG, INDEX, LAYER, MANIFEST, Descriptor, descriptor, encode

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""This machine's name of an architecture → that of images and of Debian."""


def machine_architecture() -> str:
    """Returns the architecture of this machine, as images name it."""
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
        """Returns the last part of the name without the tag."""
        return self.name.rpartition(":")[0].rpartition("/")[2]


def manifest_digest(image: OciImage) -> str:
    """Returns the SHA-256 of the image's manifest in hexadecimal, by which registries know it."""
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
    """Yields each layer of these images once, by digest."""
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
    """The name of a layer without its key, which varies with the machine that made it."""
    name = layer.path.name.partition(".")[0]
    return name.rpartition("-")[0] or name


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry

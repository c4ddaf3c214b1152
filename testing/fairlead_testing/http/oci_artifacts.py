"""Artifacts for a registry in memory: files one by one, or archives as layers."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

from fairlead_testing.oci_registry import MemoryRegistry

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
TAR_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
FILE_TYPE = "application/octet-stream"


def digest_of(content: bytes) -> str:
    """Returns the digest of a blob."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def push_layers(
    registry: MemoryRegistry,
    repository: str,
    layers: Sequence[tuple[bytes, str, Mapping[str, str]]],
    tag: str = "latest",
) -> str:
    """Stores a manifest of layers (content, media type, annotations), and returns its digest."""
    listed: list[dict[str, Any]] = []
    for content, media_type, notes in layers:
        digest = digest_of(content)
        registry.blobs[repository, digest] = content
        listed.append({"mediaType": media_type, "digest": digest, "size": len(content), "annotations": dict(notes)})
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": listed}
    return push_document(registry, repository, manifest, MANIFEST_TYPE, tag)


def push_document(registry: MemoryRegistry, repository: str, document: object, media_type: str, tag: str) -> str:
    """Stores a manifest or an index, and returns its digest."""
    body = json.dumps(document).encode()
    for version in (tag, digest_of(body)):
        registry.manifests[repository, version] = (body, media_type)
    return digest_of(body)


def file_layers(files: Mapping[str, bytes]) -> list[tuple[bytes, str, Mapping[str, str]]]:
    """Returns a layer for each file, as `oras push` makes them."""
    return [(content, FILE_TYPE, {"org.opencontainers.image.title": name}) for name, content in files.items()]


def tar_layer(members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """Returns a compressed archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """Returns a compressed archive of files."""
    return tar_layer([(tarfile.TarInfo(name), content) for name, content in files.items()])

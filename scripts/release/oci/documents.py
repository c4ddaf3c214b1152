"""Documents of the OCI image format: media types, descriptors, and bytes that do not vary.

Source: the OCI image format specification, version 1.1; Helm's OCI artefacts.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

Descriptor = dict[str, Any]
"""Media type, digest and size of a blob, and further fields of the specification."""

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CHART_CONFIG = "application/vnd.cncf.helm.config.v1+json"
CHART_CONTENT = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"
MANIFESTS = (INDEX, MANIFEST)
REF_NAME = "org.opencontainers.image.ref.name"
"""Annotation of an entry of a layout: its name."""


def encode(document: object) -> bytes:
    """Returns a document as JSON with sorted keys."""
    return json.dumps(document, sort_keys=True).encode()


def digest_of(data: bytes) -> str:
    """Returns the digest of a blob, with its algorithm."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def descriptor(data: bytes, media_type: str) -> Descriptor:
    """Returns the descriptor of these bytes."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def references(document: Mapping[str, Any]) -> Iterator[Descriptor]:
    """Yields descriptors of everything that an index or a manifest names."""
    yield from document.get("manifests", [])
    if "config" in document:
        yield document["config"]
    yield from document.get("layers", [])

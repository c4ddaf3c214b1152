"""The file of ``fairlead support-bundle``: a tar.gz of bounded size, with a manifest of what is in it, what is not, and why."""

import gzip
import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from fairlead_cli.cluster.missing_value import MissingValue

MANIFEST_NAME: Final = "manifest.json"


@dataclass(frozen=True, slots=True)
class BundleLimits:
    """Bytes, before compression."""

    part_bytes: int = 2 * 1024 * 1024
    total_bytes: int = 48 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class BundlePart:
    """One file, or why it could not be had. ``end``: of what is too long the end counts (logs), else the beginning."""

    path: str
    content: bytes | MissingValue
    keep_end: bool = False


@dataclass(frozen=True, slots=True)
class PackedBundle:
    """What goes into the file, and the manifest that says so."""

    files: tuple[tuple[str, bytes], ...]
    manifest: dict[str, Any]


def pack(parts: Sequence[BundlePart], about: dict[str, Any], bounds: BundleLimits | None = None) -> PackedBundle:
    """In their order, as long as there is room. Pure."""
    bounds = bounds or BundleLimits()
    files: list[tuple[str, bytes]] = []
    listed: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    room = bounds.total_bytes
    for part in parts:
        if isinstance(part.content, MissingValue):
            missing.append({"path": part.path, "why": part.content.reason})
            continue
        content = part.content
        if len(content) > bounds.part_bytes:
            content = content[-bounds.part_bytes :] if part.keep_end else content[: bounds.part_bytes]
        if len(content) > room:
            missing.append({"path": part.path, "why": f"the bundle is full ({bounds.total_bytes} bytes)"})
            continue
        room -= len(content)
        files.append((part.path, content))
        cut = len(part.content) - len(content)
        listed.append({"path": part.path, "bytes": len(content), **({"bytes_cut": cut} if cut else {})})
    manifest = {**about, "files": listed, "missing": missing}
    return PackedBundle(tuple(files), manifest)


def write_archive(packed: PackedBundle, target: Path, folder: str, wall: float) -> int:
    """The file, for its owner only; its size in bytes. It appears whole or not at all. Raises OSError."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    manifest = msgspec.json.format(msgspec.json.encode(packed.manifest))
    try:
        with (
            os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=int(wall)) as packing,
            tarfile.open(fileobj=packing, mode="w") as tar,
        ):
            for path, content in ((MANIFEST_NAME, manifest), *packed.files):
                entry = tarfile.TarInfo(f"{folder}/{path}")
                entry.size, entry.mtime, entry.mode = len(content), int(wall), 0o600
                tar.addfile(entry, io.BytesIO(content))
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return target.stat().st_size

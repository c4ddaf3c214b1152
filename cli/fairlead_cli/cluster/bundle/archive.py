"""The archive of ``fairlead support-bundle``: a tar.gz of bounded size, with a manifest of its
content and of what is missing.
"""

import gzip
import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from fairlead_cli.cluster.object_fields import MissingValue

MANIFEST_NAME: Final = "manifest.json"


@dataclass(frozen=True, slots=True)
class BundleLimits:
    """Size limits of a bundle before compression: of each part and of all parts together."""

    part_bytes: int = 2 * 1024 * 1024
    total_bytes: int = 48 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class BundlePart:
    """One file, or why it is missing. ``keep_end``: cut the beginning of a long file (a log), not
    its end.
    """

    path: str
    content: bytes | MissingValue
    keep_end: bool = False


@dataclass(frozen=True, slots=True)
class PackedBundle:
    """Files of the archive, and the manifest that lists them."""

    files: tuple[tuple[str, bytes], ...]
    manifest: dict[str, Any]


def pack(parts: Sequence[BundlePart], about: dict[str, Any], bounds: BundleLimits | None = None) -> PackedBundle:
    """Returns the files that fit, in order, and the manifest with the reason for each missing part.
    Files longer than ``part_bytes`` are cut.

    Pure. about: fields that the manifest begins with.
    """
    bounds = bounds or BundleLimits()
    files: list[tuple[str, bytes]] = []
    listed: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    remaining_bytes = bounds.total_bytes
    for part in parts:
        if isinstance(part.content, MissingValue):
            missing.append({"path": part.path, "why": part.content.reason})
            continue
        content = part.content
        if len(content) > bounds.part_bytes:
            content = content[-bounds.part_bytes :] if part.keep_end else content[: bounds.part_bytes]
        if len(content) > remaining_bytes:
            missing.append({"path": part.path, "why": f"the bundle is full ({bounds.total_bytes} bytes)"})
            continue
        remaining_bytes -= len(content)
        files.append((part.path, content))
        cut_bytes = len(part.content) - len(content)
        listed.append({"path": part.path, "bytes": len(content), **({"bytes_cut": cut_bytes} if cut_bytes else {})})
    manifest = {**about, "files": listed, "missing": missing}
    return PackedBundle(tuple(files), manifest)


def write_archive(packed: PackedBundle, target: Path, folder: str, now: float) -> int:
    """Writes the archive for its owner only and returns its size. It appears whole or not at all.
    Raises OSError.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    manifest = msgspec.json.format(msgspec.json.encode(packed.manifest))
    try:
        with (
            os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=int(now)) as packing,
            tarfile.open(fileobj=packing, mode="w") as tar,
        ):
            for path, content in ((MANIFEST_NAME, manifest), *packed.files):
                entry = tarfile.TarInfo(f"{folder}/{path}")
                entry.size, entry.mtime, entry.mode = len(content), int(now), 0o600
                tar.addfile(entry, io.BytesIO(content))
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target.stat().st_size

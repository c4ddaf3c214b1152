"""The files in a layer of an OCI artifact: a file by itself, or an archive."""

import asyncio
import gzip
import tarfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast

from fairlead_downloader.errors import InvalidContent
from fairlead_downloader.folder_writer import FolderWriter, is_hidden
from fairlead_downloader.sources.http_source import CHUNK_BYTES

_TITLE: Final = "org.opencontainers.image.title"
_UNPACK: Final = "io.deis.oras.content.unpack"
_TAR_SUFFIXES: Final = (".tar", ".tar+gzip", ".tar.gzip", "/x-tar", "/gzip", "/x-gzip")
_MAX_HEADER_BYTES: Final = 1024 * 1024
_LONG_HEADERS: Final = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class _BoundedHeader(tarfile.TarInfo):
    """A header of an archive; the parts that tarfile reads as a whole have a limit."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_BoundedHeader":
        """Returns a header. Raises InvalidContent for a long one."""
        found = super().frombuf(buf, encoding, errors)
        if found.type in _LONG_HEADERS and found.size > _MAX_HEADER_BYTES:
            raise InvalidContent("a layer has a header that is too long")
        return found


def layer_title(layer: dict[str, Any]) -> str | None:
    """Returns the name of a layer that is one file; None for an archive. Raises InvalidContent."""
    media_type = str(layer.get("mediaType", ""))
    notes = layer.get("annotations") or {}
    title = notes.get(_TITLE) if isinstance(notes, dict) else None
    if isinstance(title, str) and notes.get(_UNPACK) != "true":
        return title
    if media_type.endswith(_TAR_SUFFIXES):
        return None
    raise InvalidContent(f"a layer of the type {media_type:.80} is neither a tar archive nor a file with a title")


async def unpack_layer(path: Path, writer: FolderWriter) -> None:
    """Writes the files of an archive but hidden ones. Raises InvalidContent.

    Links and devices are refused: what they name may lie outside of the folder.
    """
    try:
        with path.open("rb") as raw, _decompressed(raw) as plain:
            archive = tarfile.open(fileobj=plain, mode="r|", tarinfo=_BoundedHeader)  # noqa: SIM115
            for member in archive:
                name = member.name.removeprefix("./").rstrip("/")
                if member.isdir() or (member.isreg() and is_hidden(name)):
                    continue
                if not member.isreg():
                    raise InvalidContent(f"{name:.100} in a layer is a link or a device")
                content = archive.extractfile(member)
                assert content is not None
                await writer.write_stream(name, _read(content), member.size)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError):
        raise InvalidContent("a layer is not a valid tar archive") from None


def _decompressed(raw: BinaryIO) -> BinaryIO:
    is_gzip = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_gzip else raw


async def _read(content: IO[bytes]) -> AsyncIterator[bytes]:
    while chunk := content.read(CHUNK_BYTES):
        yield chunk
        await asyncio.sleep(0)  # others are served between the chunks

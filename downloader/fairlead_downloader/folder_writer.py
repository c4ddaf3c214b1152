"""Writes the files of one download: safe names, limits, hashes.

The digest of a folder is that of a list, which `sha256sum` prints. A line has the SHA-256 of a
file, two spaces, and its name relative to the folder. Lines are sorted by the bytes of the names:

    find . -type f -not -path '*/.*' -printf '%P\n' | LC_ALL=C sort |
      xargs -d '\n' sha256sum | sha256sum

Hidden files, and files in hidden folders, are left out, as in downloads.
"""

import hashlib
import re
import shutil
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from fairlead_downloader.errors import InvalidContent, SourceFailed

PREFIX: Final = "sha256:"
CONFIG_FILE: Final = "adapter_config.json"
"""The file that makes a folder an adapter in the format of PEFT."""
MAX_FILES: Final = 1_000
_SAFE_PART: Final = re.compile(r"[A-Za-z0-9_+@=,()\[\]{} -][A-Za-z0-9._+@=,()\[\]{} -]{0,199}")
_MAX_DEPTH: Final = 8


def folder_digest(files: Mapping[str, str]) -> str:
    """Returns the digest of a folder.

    files: the SHA-256 of each file as hexadecimal digits, by its relative name.
    """
    lines = (f"{files[name]}  {name}\n".encode() for name in sorted(files, key=str.encode))
    return PREFIX + hashlib.sha256(b"".join(lines)).hexdigest()


def is_hidden(name: str) -> bool:
    """Returns whether a file, or a folder above it, begins with a dot: it is left out.

    A name that climbs with `..` is not hidden but unsafe.
    """
    parts = PurePosixPath(name).parts
    return ".." not in parts and any(part.startswith(".") for part in parts)


def check_name(name: str) -> PurePosixPath:
    """Returns a relative name. Raises InvalidContent for one that is unsafe."""
    parts = name.split("/")
    if len(parts) > _MAX_DEPTH or not all(_SAFE_PART.fullmatch(part) for part in parts):
        raise InvalidContent(f"the name of a file is not safe: {name!r:.100}")
    return PurePosixPath(name)


class FolderWriter:
    """The files of one download.

    folder: where they go; it is new and empty.
    reserve: called with a number of bytes before they are written, and with a negative one after
        they are deleted. Raises NoRoom.
    """

    def __init__(self, folder: Path, reserve: Callable[[int], None]) -> None:
        self._folder = folder
        self._reserve = reserve
        self._hashes: dict[str, str] = {}
        self.bytes_written = 0

    async def write_stream(self, name: str, chunks: AsyncIterable[bytes], size: int | None = None) -> None:
        """Writes a file. Raises SourceFailed if it has another size than announced."""
        written = self.bytes_written
        with self._create(name) as file:
            content = hashlib.sha256()
            async for chunk in chunks:
                self._write(file, chunk)
                content.update(chunk)
        self._finish(name, content.hexdigest(), self.bytes_written - written, size)

    @asynccontextmanager
    async def scratch_file(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[Path]:
        """Yields a file with these bytes next to the folder, and deletes it after the block."""
        path = self._folder.with_name(f"{self._folder.name}.scratch")
        size = 0
        try:
            with path.open("xb") as file:
                async for chunk in chunks:
                    self._reserve(len(chunk))
                    size += len(chunk)
                    file.write(chunk)
            yield path
        finally:
            path.unlink(missing_ok=True)
            self._reserve(-size)

    def finish(self) -> str:
        """Returns the digest of the folder. Raises InvalidContent if it is no adapter.

        If only one folder in it has an adapter, that one is taken.
        """
        if CONFIG_FILE not in self._hashes:
            self._take_subfolder()
        return folder_digest(self._hashes)

    def _take_subfolder(self) -> None:
        found = [name for name in self._hashes if PurePosixPath(name).name == CONFIG_FILE]
        if len(found) != 1:
            raise InvalidContent(
                f"{len(found)} of its {len(self._hashes)} files are called {CONFIG_FILE}; one is needed"
            )
        prefix = found[0].removesuffix(CONFIG_FILE)
        inner = self._folder.with_name(f"{self._folder.name}.inner")
        (self._folder / prefix).rename(inner)
        shutil.rmtree(self._folder)
        inner.rename(self._folder)
        self._hashes = {
            name.removeprefix(prefix): content for name, content in self._hashes.items() if name.startswith(prefix)
        }

    def _create(self, name: str) -> BinaryIO:
        relative = check_name(name)
        if name in self._hashes:
            raise InvalidContent(f"two files are called {name:.100}")
        if len(self._hashes) >= MAX_FILES:
            raise InvalidContent(f"it has more than {MAX_FILES} files")
        path = self._folder / relative
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
        except (FileExistsError, NotADirectoryError):
            raise InvalidContent(f"{name:.100} is a file and a folder") from None

    def _write(self, file: BinaryIO, chunk: bytes) -> None:
        self._reserve(len(chunk))
        file.write(chunk)
        self.bytes_written += len(chunk)

    def _finish(self, name: str, content: str, written: int, size: int | None) -> None:
        if size is not None and written != size:
            raise SourceFailed(f"{name:.100} has {written} bytes, where {size} were announced")
        self._hashes[name] = content

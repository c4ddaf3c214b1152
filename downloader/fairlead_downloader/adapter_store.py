"""The folders of downloaded adapters: each content once, within the size of their volume.

A download writes into a folder that begins with `.new-`, and renames it when its digest is right.
So a folder without that prefix is complete, also after a crash. Calls for the same content share
one download, which goes on if they leave.

If a download needs room, the folders that were not used for longest are deleted. One that was used
a moment ago stays: an engine may be about to read it.
"""

import asyncio
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from fairlead.adapters.download import AdapterDownload
from fairlead_downloader.errors import DigestMismatch, DownloadError, InvalidRequest, NoRoom, SourceFailed
from fairlead_downloader.folder_writer import FolderWriter

Fetcher: TypeAlias = Callable[[AdapterDownload, FolderWriter], Awaitable[None]]
"""Writes the files of a download. Raises DownloadError."""

IN_USE_SECONDS: Final = 120.0
"""A folder that was used within this time is not deleted: engines take a minute to load it."""
MAX_DOWNLOADS: Final = 4
"""Downloads at a time; others wait."""
_MIN_SECONDS: Final = 0.001
"""A download took at least this long; 0 says that there was none."""
_NEW_PREFIX: Final = ".new-"
_RECORD: Final = ".fairlead.json"
_LOG: Final = logging.getLogger("fairlead.downloader")


class FolderRecord(msgspec.Struct):
    """The content of a complete folder, as its hidden file has it."""

    digest: str
    bytes: int


@dataclass(frozen=True, slots=True)
class DownloadedAdapter:
    """An adapter that is complete.

    seconds: how long its download took; 0 if it was there.
    """

    path: Path
    bytes: int
    digest: str
    seconds: float = 0.0


@dataclass(slots=True)
class _Folder:
    """A complete folder. used_at: Unix time of its last use."""

    adapter: DownloadedAdapter
    used_at: float


class AdapterStore:
    """The folders of one pod.

    max_bytes: of all folders together.
    fetchers: by scheme.
    now: Unix time.
    """

    def __init__(self, root: Path, max_bytes: int, fetchers: Mapping[str, Fetcher], now: Callable[[], float]) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._fetchers = fetchers
        self._now = now
        self._turns = asyncio.Semaphore(MAX_DOWNLOADS)
        self._downloads: dict[str, asyncio.Task[DownloadedAdapter]] = {}
        self._written: dict[str, int] = {}  # bytes of unfinished downloads
        self._folders = self._read_folders()

    @property
    def bytes_used(self) -> int:
        """The bytes of all folders, unfinished ones included."""
        return sum(self._written.values()) + sum(folder.adapter.bytes for folder in self._folders.values())

    async def get(self, download: AdapterDownload, name: str) -> DownloadedAdapter:
        """Returns an adapter; downloads it first if necessary. Raises DownloadError.

        name: of the adapter, for the log.
        """
        key = download.folder_name
        folder = self._folders.get(key)
        if folder is not None:
            folder.used_at = self._now()
            os.utime(folder.adapter.path, (folder.used_at, folder.used_at))
            return folder.adapter
        task = self._downloads.get(key)
        if task is None:
            task = self._downloads[key] = asyncio.create_task(self._download(key, download, name))
            task.add_done_callback(lambda ended: self._on_end(key, ended))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Cancels all downloads."""
        tasks = list(self._downloads.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_end(self, key: str, task: "asyncio.Task[DownloadedAdapter]") -> None:
        del self._downloads[key]
        if not task.cancelled():
            task.exception()  # all that waited may have left

    async def _download(self, key: str, download: AdapterDownload, name: str) -> DownloadedAdapter:
        fetch = self._fetchers.get(download.scheme)
        if fetch is None:
            raise InvalidRequest(f"no adapter comes from {download.scheme}://")
        async with self._turns:
            started_at = self._now()
            try:
                complete = await self._fetch(key, download, fetch)
            except DownloadError as error:
                _LOG.warning("%s from %s: %s", name, download.source, error)
                raise
            except OSError as error:
                _LOG.warning("%s from %s: %s", name, download.source, error)
                raise SourceFailed(f"it cannot be stored: {error.strerror}") from None
            finally:
                self._written.pop(key, None)
                self._delete_unfinished(key)
            seconds = max(_MIN_SECONDS, self._now() - started_at)
        adapter = DownloadedAdapter(complete.path, complete.bytes, complete.digest, seconds)
        _LOG.info("%s from %s: %d bytes in %.1f s, %s", name, download.source, adapter.bytes, seconds, adapter.digest)
        return adapter

    async def _fetch(self, key: str, download: AdapterDownload, fetch: Fetcher) -> DownloadedAdapter:
        folder = self._root / f"{_NEW_PREFIX}{key}"
        self._delete_unfinished(key)
        folder.mkdir(parents=True)
        writer = FolderWriter(folder, lambda size: self._reserve(key, size))
        await fetch(download, writer)
        digest = writer.finish()
        if download.digest and digest != download.digest:
            raise DigestMismatch(f"its digest is {digest}, not {download.digest}")
        record = FolderRecord(digest, writer.bytes_written)
        (folder / _RECORD).write_bytes(msgspec.json.encode(record))
        path = self._root / key
        shutil.rmtree(path, ignore_errors=True)  # a crash of the machine may leave one without a valid record
        folder.rename(path)
        adapter = DownloadedAdapter(path, record.bytes, digest)
        self._folders[key] = _Folder(adapter, self._now())
        return adapter

    def _reserve(self, key: str, size: int) -> None:
        """Makes room for bytes of a download. Raises NoRoom."""
        mine = self._written.get(key, 0) + size
        if mine > self._max_bytes:
            raise NoRoom(f"it is larger than {self._max_bytes} bytes, 95 % of spec.adapters.download.size")
        while self.bytes_used + size > self._max_bytes:
            self._evict()
        self._written[key] = mine

    def _evict(self) -> None:
        key = min(self._folders, key=lambda name: self._folders[name].used_at, default=None)
        if key is None or self._now() - self._folders[key].used_at < IN_USE_SECONDS:
            raise NoRoom(f"the other adapters are in use, and all together may have {self._max_bytes} bytes")
        _LOG.info("deleted %s to make room", key)
        # Engines with an open file can read on.
        shutil.rmtree(self._folders.pop(key).adapter.path, ignore_errors=True)

    def _delete_unfinished(self, key: str = "") -> None:
        for path in self._root.glob(f"{_NEW_PREFIX}{key}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _read_folders(self) -> dict[str, _Folder]:
        """Returns the folders that an earlier process has completed."""
        self._root.mkdir(parents=True, exist_ok=True)
        self._delete_unfinished()
        found: dict[str, _Folder] = {}
        for path in self._root.iterdir():
            try:
                record = msgspec.json.decode((path / _RECORD).read_bytes(), type=FolderRecord)
            except (OSError, msgspec.DecodeError):
                continue
            found[path.name] = _Folder(DownloadedAdapter(path, record.bytes, record.digest), path.stat().st_mtime)
        return found

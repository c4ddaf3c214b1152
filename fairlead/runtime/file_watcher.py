"""A poller for changes of small files, such as keys and certificates.

A change is reported once the files are unchanged for one interval, so that half-written files are
not read. Inode, size and modification time of the targets of symbolic links are compared, because
Kubernetes replaces the target of a link when a Secret changes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from fairlead.errors import FairleadError
from fairlead.runtime.tasks import cancel_and_wait

POLL_SECONDS = 0.2
_log = logging.getLogger("fairlead.gateway")


class FileVersion(NamedTuple):
    """The version of one file; zeros if it does not exist."""

    inode: int = 0
    modified_ns: int = 0
    size: int = 0


Signature = tuple[FileVersion, ...]


class ToleratedErrors(NamedTuple):
    """Errors that do not stop the start of a watcher, and what holds after one, in words."""

    types: tuple[type[Exception], ...]
    consequence: str


_NO_TOLERATED_ERRORS: Final = ToleratedErrors((), "nothing is known")


class FileWatcher:
    """A task that calls `load` whenever `files` have changed.

    problem: the error of the last call of `load`, or None. The last good state stays in use.
    tolerated: the errors of the first `load` that do not stop the start; by default every one does.
    description: the files in messages, such as "the keys file".
    """

    def __init__(
        self,
        description: str,
        files: Sequence[Path],
        load: Callable[[], Awaitable[None]],
        poll_seconds: float = POLL_SECONDS,
        *,
        tolerated: ToleratedErrors = _NO_TOLERATED_ERRORS,
    ) -> None:
        self._tolerated = tolerated
        self._is_loaded = False
        self._description = description
        self._files = tuple(files)
        self._load = load
        self._poll_seconds = poll_seconds
        self._task: asyncio.Task[None] | None = None
        self.problem: str | None = None

    async def start(self) -> None:
        """Calls `load` once and starts watching. Raises the errors of `load` but tolerated ones."""
        seen = file_signature(self._files)
        try:
            await self._load()
        except self._tolerated.types as error:
            self.problem = f"{self._description} cannot be used, {self._state()}: {error}"
            _log.error("%s", self.problem)
        else:
            self._is_loaded = True
        self._task = asyncio.create_task(self._poll_loop(seen), name=f"watch {self._description}")

    async def stop(self) -> None:
        task, self._task = self._task, None
        await cancel_and_wait(task)

    async def _poll_loop(self, done: Signature) -> None:
        pending = done
        while True:
            await asyncio.sleep(self._poll_seconds)
            now = file_signature(self._files)
            if now != pending:
                pending = now
            elif now != done:
                done = now
                await self._reload()

    def _state(self) -> str:
        return "the last good state stays" if self._is_loaded else self._tolerated.consequence

    async def _reload(self) -> None:
        try:
            await self._load()
        except (FairleadError, OSError, ValueError) as error:
            self.problem = f"{self._description} cannot be used, {self._state()}: {error}"
            _log.warning("%s", self.problem)
        else:
            self._is_loaded, self.problem = True, None
            _log.info("%s: reloaded", self._description)


def file_signature(files: Sequence[Path]) -> Signature:
    return tuple(_file_version(path) for path in files)


def _file_version(path: Path) -> FileVersion:
    try:
        status = path.stat()
    except OSError:
        return FileVersion()
    return FileVersion(status.st_ino, status.st_mtime_ns, status.st_size)

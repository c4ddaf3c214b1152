"""Small files that are watched: keys, certificates. A change is told once the files have stood still, so nobody reads half of one.

What is asked is the modification time and the inode behind the name, so a Kubernetes Secret, which is swapped as a whole behind a
symbolic link, is seen like a file that was edited.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from fairlead.errors import FairleadError
from fairlead.runtime.tasks import cancel_and_wait

POLL_SECONDS = 0.2
_log = logging.getLogger("fairlead.gateway")

Signature = tuple[tuple[int, int, int], ...]


class FileWatcher:
    """Calls ``load`` whenever ``files`` have changed; what it raises is kept as ``problem`` and changes nothing else.

    ``what`` names the files in that problem, as in "the keys file".
    """

    def __init__(
        self, what: str, files: Sequence[Path], load: Callable[[], Awaitable[None]], poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._what = what
        self._files = tuple(files)
        self._load = load
        self._poll_seconds = poll_seconds
        self._task: asyncio.Task[None] | None = None
        self.problem: str | None = None

    async def start(self) -> None:
        """Load, and follow from now on. Raises what ``load`` raises: there is nothing good to fall back to yet."""
        seen = file_signature(self._files)
        await self._load()
        self._task = asyncio.create_task(self._poll_loop(seen), name=f"watch {self._what}")

    async def stop(self) -> None:
        """Look no more."""
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

    async def _reload(self) -> None:
        try:
            await self._load()
        except (FairleadError, OSError, ValueError) as error:
            self.problem = f"{self._what} cannot be used, the last good state stays: {error}"
            _log.warning("%s", self.problem)
        else:
            self.problem = None
            _log.info("%s: read again", self._what)


def file_signature(files: Sequence[Path]) -> Signature:
    """Changes when one of ``files`` is edited, replaced or removed."""
    return tuple(_stat_signature(path) for path in files)


def _stat_signature(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_size

"""Watches a fleet file. After a broken edit, the last good fleet stays in use."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from fairlead.errors import FairleadError, Unavailable
from fairlead.fleet.model import Fleet, next_fleet
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.file_watcher import file_signature

FleetFileParser = Callable[[bytes, str], Fleet]


class FileFleetSource:
    """A FleetSource that polls a fleet file every `poll_seconds`.

    An edit in place is loaded once the file has not changed for one poll. A replaced file
    (`write_fleet_file`) is loaded at once.

    parse: returns the fleet from the content and the name of the file, and raises FairleadError;
        None: in this process.
    problem: the error of the last edit, or None.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        poll_seconds: float = 0.2,
        *,
        limits: Limits | None = None,
        report: Callable[[FairleadError], None] | None = None,
        parse: FleetFileParser | None = None,
    ) -> None:
        self._path = path
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._limits = limits or Limits()
        self._report = report
        self._parse = parse or self._parse_here
        self._fleet: Fleet | None = None
        self.problem: FairleadError | None = None
        self.loaded_at: float | None = None

    async def watch(self) -> AsyncIterator[Fleet]:
        """Yields the current fleet, then a new one after every valid edit that changes it.

        Raises FairleadError if the first load fails.
        """
        done = file_signature([self._path])
        yield await self._load_first()
        pending = done
        while True:
            await asyncio.sleep(self._poll_seconds)
            now = file_signature([self._path])
            if now == done:
                pending = done
                continue
            is_new_file = done[0].inode not in (0, now[0].inode)  # replaced or deleted
            if not is_new_file and now != pending:
                pending = now
                continue
            done = pending = now
            fleet = await self._reload()
            if fleet is not None:
                yield fleet

    def warnings(self) -> list[str]:
        return [f"the fleet file cannot be used: {self.problem}"] if self.problem is not None else []

    def age_seconds(self) -> float | None:
        """Returns None: the content of a file is valid until the next edit."""
        return None

    async def _load_first(self) -> Fleet:
        self._fleet = await asyncio.to_thread(self._load)
        self.loaded_at = self._clock.now()
        return self._fleet

    async def _reload(self) -> Fleet | None:
        """Returns the edited fleet; None if the file is broken or its content is unchanged."""
        try:
            edited = await asyncio.to_thread(self._load)
        except FairleadError as error:
            self.problem = error
            if self._report is not None:
                self._report(error)
            return None
        self.problem = None
        self.loaded_at = self._clock.now()
        last = self._fleet
        self._fleet = next_fleet(last, edited.models, edited.instances, routes=edited.routes)
        return None if self._fleet is last else self._fleet

    def _load(self) -> Fleet:
        try:
            raw = self._path.read_bytes()
        except OSError as error:
            message = f"cannot read the fleet file {self._path}: {error.strerror or error}"
            raise Unavailable(message, hint="the last good fleet stays in use") from error
        return self._parse(raw, str(self._path))

    def _parse_here(self, raw: bytes, file: str) -> Fleet:
        from fairlead.fleet.file.format import parse_fleet_file  # most memory of the process that needs it
        from fairlead.manifests.yaml_nodes import decode_file

        text = decode_file(raw, file=file, limits=self._limits)
        return parse_fleet_file(text, file=file, limits=self._limits)

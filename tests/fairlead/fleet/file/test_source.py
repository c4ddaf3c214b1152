"""A watched fleet file: edits arrive, invalid ones change nothing, and the counters are right."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from fairlead.errors import FairleadError, ManifestError, Unavailable
from fairlead.fleet.file import FileFleetSource, parse_fleet_file, write_fleet_file
from fairlead.fleet.model import Fleet, FleetSource
from fairlead.runtime.clock import ManualClock

POLL = 0.01
PATIENCE = 120.0


def text(*ports: int, preset: str = "dual-hash", state: str = "Ready") -> str:
    lines = "".join(f'      - {{url: "http://127.0.0.1:{port}", state: {state}}}\n' for port in ports)
    return f"models:\n  - name: tiny\n    routing: {{preset: {preset}}}\n    instances:\n{lines}"


class WatchedFile:
    """A source on a file of its own, and the reports that it made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reports: list[FairleadError] = []
        self.reported = asyncio.Event()
        self.clock = ManualClock()
        self.source = FileFleetSource(path, self.clock, POLL, report=self._report)
        self.fleets: AsyncIterator[Fleet] = self.source.watch()

    def _report(self, error: FairleadError) -> None:
        self.reports.append(error)
        self.reported.set()

    async def next(self) -> Fleet:
        async with asyncio.timeout(PATIENCE):
            return await anext(self.fleets)

    async def until_reported(self) -> None:
        """Watch on until the next report; no fleet may come before it."""
        self.reported.clear()
        coming = asyncio.ensure_future(anext(self.fleets))
        async with asyncio.timeout(PATIENCE):
            await self.reported.wait()
        assert not coming.done()
        coming.cancel()
        with suppress(asyncio.CancelledError):
            await coming
        self.fleets = self.source.watch()
        async with asyncio.timeout(PATIENCE):
            with suppress(FairleadError):
                await anext(self.fleets)


def replace_file(path: Path, content: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(content)
    os.replace(beside, path)


@asynccontextmanager
async def watched_file(path: Path) -> AsyncIterator[WatchedFile]:
    watched = WatchedFile(path)
    try:
        yield watched
    finally:
        await watched.fleets.aclose()  # type: ignore[attr-defined]  # watch() is an async generator


@asynccontextmanager
async def loaded_file(folder: Path) -> AsyncIterator[tuple[Path, WatchedFile]]:
    """A file with one instance, whose fleet has come."""
    path = folder / "fleet.yaml"
    path.write_text(text(9001))
    async with watched_file(path) as watched:
        await watched.next()
        yield path, watched


async def test_current_fleet_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text(9001))
    async with watched_file(path) as watched:
        source: FleetSource = watched.source
        assert source is not None
        watched.clock.advance(5)
        fleet = await watched.next()
        assert (fleet.version, fleet.membership_epoch) == (1, 1)
        assert watched.source.loaded_at == 5


@pytest.mark.parametrize("edit", [Path.write_text, replace_file])
async def test_edits_in_place_and_replacements_are_loaded(tmp_path: Path, edit: Callable[[Path, str], object]) -> None:
    async with loaded_file(tmp_path) as (path, watched):
        edit(path, text(9001, 9002))
        fleet = await watched.next()
        assert [instance.id for instance in fleet.instances["default/tiny"]] == ["127.0.0.1/9001/0", "127.0.0.1/9002/0"]
        assert (fleet.version, fleet.membership_epoch) == (2, 2)


async def test_epoch_counts_only_membership_changes(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text(9001, 9002))
    async with watched_file(path) as watched:
        await watched.next()
        seen = []
        for content in (
            text(9001, 9002, preset="session"),
            text(9001, 9002, state="Draining"),
            text(9001, 9002, state="Sleeping"),
            text(9001, 9002, state="Starting"),
            text(9001),
        ):
            replace_file(path, content)
            fleet = await watched.next()
            seen.append((fleet.version, fleet.membership_epoch))
        assert seen == [(2, 1), (3, 2), (4, 2), (5, 2), (6, 3)]


@pytest.mark.parametrize("broken", ["models: [", "", "modells: []\n", "\xff"])
async def test_broken_edit_keeps_the_last_good_fleet_and_is_reported(tmp_path: Path, broken: str) -> None:
    async with loaded_file(tmp_path) as (path, watched):
        coming = asyncio.ensure_future(watched.next())
        path.write_bytes(broken.encode("latin-1"))
        async with asyncio.timeout(PATIENCE):
            await watched.reported.wait()
        assert not coming.done()
        assert isinstance(watched.source.problem, ManifestError)
        replace_file(path, text(9001, 9003))
        fleet = await coming
        assert fleet.version == 2
        assert watched.source.problem is None


async def test_missing_file_is_reported_and_its_return_is_noticed(tmp_path: Path) -> None:
    async with loaded_file(tmp_path) as (path, watched):
        coming = asyncio.ensure_future(watched.next())
        path.unlink()
        async with asyncio.timeout(PATIENCE):
            await watched.reported.wait()
        assert isinstance(watched.source.problem, Unavailable)
        path.write_text(text(9004))
        assert (await coming).version == 2


async def test_edit_without_changes_yields_nothing(tmp_path: Path) -> None:
    async with loaded_file(tmp_path) as (path, watched):
        replace_file(path, "# a comment\n" + text(9001))
        replace_file(path, "# another\n" + text(9001))
        coming = asyncio.ensure_future(watched.next())
        write_fleet_file(path, parse_fleet_file(text(9001, 9002), file="f"))
        fleet = await coming
        assert fleet.version == 2


async def test_file_broken_at_start_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    async with watched_file(path) as watched:
        with pytest.raises(Unavailable, match="cannot read the fleet file"):
            await watched.next()
    path.write_text("models: 7\n")
    async with watched_file(path) as watched:
        with pytest.raises(ManifestError, match="must be a list"):
            await watched.next()

"""The folders of a pod: shared downloads, eviction, cancelled calls, restarts."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fairlead.adapters.download import AdapterDownload
from fairlead_downloader.adapter_store import IN_USE_SECONDS, AdapterStore
from fairlead_downloader.errors import InvalidRequest, NoRoom, SourceFailed
from fairlead_downloader.folder_writer import FolderWriter
from fairlead_testing.waiting import wait_until

SIZE = 400


def download_of(name: str) -> AdapterDownload:
    return AdapterDownload(f"s3://bucket/{name}")


class FakeStore:
    """A source whose folders have `SIZE` bytes, and which waits until `go` is set."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.go = asyncio.Event()
        self.go.set()
        self.failure: Exception | None = None

    async def fetch(self, download: AdapterDownload, writer: FolderWriter) -> None:
        self.fetched.append(download.location)
        await writer.write_stream("adapter_config.json", self._chunks())

    async def _chunks(self) -> AsyncIterator[bytes]:
        yield bytes(SIZE // 2)
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        yield bytes(SIZE // 2)


class Clock:
    """Unix time that a test sets."""

    now = 1e9

    def __call__(self) -> float:
        return self.now


def make_store(root: Path, source: FakeStore, clock: Clock, max_bytes: int = 1_000) -> AdapterStore:
    return AdapterStore(root, max_bytes, {"s3": source.fetch}, clock)


def folders(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


async def test_calls_for_one_adapter_share_a_download_which_survives_cancelled_calls(tmp_path: Path) -> None:
    source, clock = FakeStore(), Clock()
    store = make_store(tmp_path, source, clock)
    source.go.clear()
    calls = [asyncio.create_task(store.get(download_of("sql"), "sql")) for _ in range(3)]
    await wait_until(lambda: bool(folders(tmp_path)))
    calls[0].cancel()
    await asyncio.sleep(0)
    source.go.set()
    first, second = await calls[1], await calls[2]
    assert calls[0].cancelled()
    assert first == second
    assert source.fetched == ["bucket/sql"]
    assert (await store.get(download_of("sql"), "sql")).path == tmp_path / download_of("sql").folder_name
    assert len(source.fetched) == 1


async def test_folders_that_were_not_used_for_longest_are_deleted(tmp_path: Path) -> None:
    source, clock = FakeStore(), Clock()
    store = make_store(tmp_path, source, clock)
    for name in ("a", "b"):
        await store.get(download_of(name), name)
        clock.now += 1
    with pytest.raises(NoRoom, match="in use"):
        await store.get(download_of("c"), "c")
    clock.now += IN_USE_SECONDS
    await store.get(download_of("a"), "a")  # so b is the oldest
    await store.get(download_of("c"), "c")
    assert folders(tmp_path) == {download_of(name).folder_name for name in "ac"}
    assert store.bytes_used == 2 * SIZE


async def test_unfinished_download_is_not_deleted_for_another(tmp_path: Path) -> None:
    source, clock = FakeStore(), Clock()
    store = make_store(tmp_path, source, clock, max_bytes=SIZE + SIZE // 4)
    source.go.clear()
    first = asyncio.create_task(store.get(download_of("a"), "a"))
    await wait_until(lambda: bool(folders(tmp_path)))
    clock.now += 10 * IN_USE_SECONDS
    source.go.set()
    second = asyncio.create_task(store.get(download_of("b"), "b"))
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["DownloadedAdapter", "NoRoom"]
    assert store.bytes_used == SIZE


async def test_failed_download_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    source, clock = FakeStore(), Clock()
    store = make_store(tmp_path, source, clock)
    for failure in (SourceFailed("cut off"), OSError(28, "No space left on device")):
        source.failure = failure
        with pytest.raises(SourceFailed):
            await store.get(download_of("a"), "a")
        assert folders(tmp_path) == set()
        assert store.bytes_used == 0
    source.failure = None
    await store.get(download_of("a"), "a")


async def test_closed_store_leaves_no_unfinished_folder(tmp_path: Path) -> None:
    source = FakeStore()
    store = make_store(tmp_path, source, Clock())
    source.go.clear()
    call = asyncio.create_task(store.get(download_of("a"), "a"))
    await wait_until(lambda: bool(folders(tmp_path)))
    await store.close()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert folders(tmp_path) == set()


async def test_next_process_finds_complete_folders_and_deletes_others(tmp_path: Path) -> None:
    source, clock = FakeStore(), Clock()
    complete = await make_store(tmp_path, source, clock).get(download_of("a"), "a")
    unfinished = tmp_path / f".new-{download_of('b').folder_name}"
    unfinished.mkdir()
    (unfinished / "part").write_bytes(b"x")
    (tmp_path / "lost+found").mkdir()
    store = make_store(tmp_path, source, clock)
    assert folders(tmp_path) == {download_of("a").folder_name, "lost+found"}
    assert (await store.get(download_of("a"), "a")) == complete.__class__(complete.path, SIZE, complete.digest)
    assert len(source.fetched) == 1


async def test_other_schemes_are_refused(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path, 1, {}, Clock())
    with pytest.raises(InvalidRequest):
        await store.get(download_of("a"), "a")


async def test_folder_whose_record_was_lost_in_a_crash_is_downloaded_again(tmp_path: Path) -> None:
    broken = tmp_path / download_of("a").folder_name
    broken.mkdir()
    for name in ("adapter_config.json", ".fairlead.json"):
        (broken / name).touch()
    adapter = await make_store(tmp_path, FakeStore(), Clock()).get(download_of("a"), "a")
    assert adapter.path == broken
    assert (broken / "adapter_config.json").stat().st_size == SIZE

"""Fixtures of the downloader's tests."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession

from fairlead.adapters.download import AdapterDownload
from fairlead_downloader.__main__ import create_fetchers
from fairlead_downloader.adapter_store import AdapterStore, DownloadedAdapter
from fairlead_downloader.sources.http_source import open_session

Get = Callable[..., DownloadedAdapter]


@pytest.fixture
def get(tmp_path: Path) -> Get:
    """Returns a function that downloads an adapter as a process with this environment does."""

    def run(
        download: AdapterDownload,
        environment: dict[str, str],
        max_bytes: int = 1_000_000,
        credentials: Path | None = None,
    ) -> DownloadedAdapter:
        async def work(session: ClientSession) -> DownloadedAdapter:
            fetchers = create_fetchers(session, environment, credentials)
            store = AdapterStore(tmp_path / "downloads", max_bytes, fetchers, lambda: 1e9)
            return await store.get(download, "sql")

        return asyncio.run(_with_session(work))

    return run


async def _with_session(work: Callable[[ClientSession], Awaitable[DownloadedAdapter]]) -> DownloadedAdapter:
    async with open_session() as session:
        return await work(session)

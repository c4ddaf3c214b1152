"""Repositories of Hugging Face, and of hubs with its API.

`HF_ENDPOINT` names another hub, and `HF_TOKEN` is the bearer token: the variables of its own
client.

Why not that client: it brings fifteen packages, and two kinds of GET are needed.
Source: https://huggingface.co/docs/hub/api
"""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohttp

from fairlead.adapters.download import AdapterDownload
from fairlead_downloader.errors import InvalidContent, SourceFailed
from fairlead_downloader.folder_writer import FolderWriter, check_name, is_hidden
from fairlead_downloader.sources.http_source import (
    CHUNK_BYTES,
    check_status,
    get_response,
    parse_object,
    read_document,
)

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
_MAIN: Final = "main"


class Hub:
    """The source of hf:// addresses."""

    def __init__(self, session: aiohttp.ClientSession, environment: Mapping[str, str]) -> None:
        self._session = session
        self._endpoint = (environment.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        token = environment.get("HF_TOKEN", "").strip()
        self._headers = {"authorization": f"Bearer {token}"} if token else {}

    async def fetch(self, download: AdapterDownload, writer: FolderWriter) -> None:
        """Writes all files of a commit but hidden ones. Raises DownloadError."""
        repository = download.location
        commit, names = await self._list_files(repository, download.revision)
        for name in names:
            what = f"{repository}: {name}"
            url = f"{self._endpoint}/{quote(repository)}/resolve/{commit}/{quote(name)}"
            async with get_response(self._session, url, what, self._headers) as response:
                check_status(response, what)
                await writer.write_stream(name, response.content.iter_chunked(CHUNK_BYTES), response.content_length)

    async def _list_files(self, repository: str, revision: str) -> tuple[str, list[str]]:
        """Returns the commit, and the names of its files."""
        url = f"{self._endpoint}/api/models/{quote(repository)}/revision/{revision or _MAIN}"
        async with get_response(self._session, url, repository, self._headers) as response:
            check_status(response, repository)
            answer = parse_object(await read_document(response, repository), repository)
        commit = answer.get("sha")
        if not isinstance(commit, str):
            raise SourceFailed(f"{repository}: {_host(self._endpoint)} names no commit of it")
        if revision and commit != revision:
            raise SourceFailed(f"{repository}: {_host(self._endpoint)} answers with another commit than {revision}")
        names = [_file_name(item) for item in answer.get("siblings") or ()]
        shown = [name for name in names if not is_hidden(name)]
        for name in shown:
            check_name(name)
        return commit, shown


def _file_name(item: Any) -> str:
    name = item.get("rfilename") if isinstance(item, dict) else None
    if not isinstance(name, str):
        raise InvalidContent("the hub's list of files cannot be read")
    return name


def _host(url: str) -> str:
    return urlsplit(url).hostname or url

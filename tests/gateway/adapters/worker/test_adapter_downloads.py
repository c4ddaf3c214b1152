"""Adapters that the downloader of a pod fetches before the engine loads them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from fairlead.adapters.download import AdapterDownload
from fairlead.adapters.model import LoraAdapter
from fairlead_sim.runtime.settings import EngineSettings
from fairlead_testing.gateway.gateway_process import Setting, adapted
from fairlead_testing.gateway.running_gateway import MODEL_KEY
from fairlead_testing.http.raw_client import request
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer

pytestmark = pytest.mark.sockets

FAST = EngineSettings(model="tiny", served_names=("tiny",), speed=50.0, max_loaded_adapters=8)
DOWNLOAD = AdapterDownload("s3://loras/sql-2", digest="sha256:" + "0" * 64)


def chat(name: str) -> dict[str, Any]:
    return {"model": name, "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 4}


def downloaded(download: AdapterDownload, seconds: float = 1.25, **more: object) -> CannedResponse:
    body = {"path": download.engine_path, "bytes": 7, "seconds": seconds, "digest": download.digest, **more}
    return CannedResponse((json.dumps(body).encode(),))


def refused(status: int, code: str) -> CannedResponse:
    return CannedResponse((json.dumps({"error": {"code": code, "message": "why"}}).encode(),), status)


@asynccontextmanager
async def downloading(server: CannedServer, download: AdapterDownload = DOWNLOAD) -> AsyncIterator[Setting]:
    """Runs a gateway whose only adapter is downloaded by `server`."""
    async with adapted([], settings=FAST) as setting:
        gateway = setting.running.gateway
        gateway.stages.adapter_loader.downloaders.port = int(server.url.rpartition(":")[2])
        fleet = gateway.stages.routers.fleet
        adapter = LoraAdapter("sql", download.engine_path, download=download)
        model = replace(fleet.models[MODEL_KEY], adapters=(adapter,))
        gateway.update_fleet(replace(fleet, version=2, models={MODEL_KEY: model}))
        yield setting


def sources(setting: Setting) -> dict[str, str]:
    return {adapter.name: adapter.path for adapter in setting.engines[0].engine.models.adapters}


@pytest.mark.parametrize("download", [DOWNLOAD, AdapterDownload("hf://acme/sql", revision="0" * 40)])
async def test_adapter_is_downloaded_and_then_loaded_from_its_folder(download: AdapterDownload) -> None:
    async def main(server: CannedServer) -> None:
        async with downloading(server, download) as setting:
            reply = await request(setting.running.url, chat("sql"))
            assert reply.status == 200, reply.body
            (logged,) = setting.running.gateway.decisions.find(reply.fields["x-fairlead-decision"])
            assert logged.latest.decision.reason.startswith("adapter sql cold, downloaded in 1.25s, loaded in ")
            assert sources(setting) == {"sql": download.engine_path}
            assert (await request(setting.running.url, chat("sql"))).status == 200
            assert len(server.requests) == 1
            sent = json.loads(server.requests[0].body)
            pins = {"revision": download.revision} if download.revision else {"digest": download.digest}
            assert sent == {"name": "sql", "source": download.source, **pins}

    with CannedServer({"/v1/adapters": downloaded(download)}) as server:
        await main(server)


async def test_folder_that_was_there_is_not_called_downloaded() -> None:
    async def main(server: CannedServer) -> None:
        async with downloading(server) as setting:
            reply = await request(setting.running.url, chat("sql"))
            (logged,) = setting.running.gateway.decisions.find(reply.fields["x-fairlead-decision"])
            assert logged.latest.decision.reason.startswith("adapter sql cold, loaded in ")

    with CannedServer({"/v1/adapters": downloaded(DOWNLOAD, 0.0)}) as server:
        await main(server)


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (refused(404, "source_not_found"), "adapter-source-not-found"),
        (refused(403, "credentials_refused"), "adapter-credentials-refused"),
        (refused(422, "digest_mismatch"), "adapter-digest-mismatch"),
        (refused(422, "invalid_content"), "adapter-invalid-content"),
        (refused(507, "no_room"), "adapter-no-room"),
        (refused(502, "source_failed"), "adapter-download"),
        (CannedResponse((b"no JSON",), 500), "adapter-download"),
        (CannedResponse((b"no JSON",)), "adapter-download"),
        (downloaded(DOWNLOAD, path="/etc/passwd"), "adapter-download"),
    ],
)
async def test_failed_download_is_an_error_with_its_cause(answer: CannedResponse, cause: str) -> None:
    async def main(server: CannedServer) -> None:
        async with downloading(server) as setting:
            for _ in range(2):  # the second one does not ask again
                reply = await request(setting.running.url, chat("sql"))
                assert (reply.status, reply.json["error"]["code"]) == (503, "adapter_not_loaded")
                assert f"last: {cause}" in reply.json["error"]["message"]
            assert len(server.requests) == 1
            assert sources(setting) == {}
            assert (await request(setting.running.url, chat("tiny"))).status == 200  # the engine is not at fault

    with CannedServer({"/v1/adapters": answer}) as server:
        await main(server)


async def test_downloader_that_is_not_there_is_no_fault_of_the_engine() -> None:
    async def main(server: CannedServer) -> None:
        async with downloading(server) as setting:
            setting.running.gateway.stages.adapter_loader.downloaders.port = 9
            reply = await request(setting.running.url, chat("sql"))
            assert (reply.status, reply.json["error"]["code"]) == (503, "adapter_not_loaded")
            assert "last: adapter-download" in reply.json["error"]["message"]
            assert (await request(setting.running.url, chat("tiny"))).status == 200

    with CannedServer({}) as server:
        await main(server)


async def test_changed_digest_is_downloaded_and_swapped() -> None:
    async def main(server: CannedServer) -> None:
        async with downloading(server) as setting:
            assert (await request(setting.running.url, chat("sql"))).status == 200
            other = replace(DOWNLOAD, digest="sha256:" + "1" * 64)
            server.responses["/v1/adapters"] = downloaded(other)
            fleet = setting.running.gateway.stages.routers.fleet
            adapter = LoraAdapter("sql", other.engine_path, download=other)
            model = replace(fleet.models[MODEL_KEY], adapters=(adapter,))
            setting.running.gateway.update_fleet(replace(fleet, version=3, models={MODEL_KEY: model}))
            assert (await request(setting.running.url, chat("sql"))).status == 200
            assert sources(setting) == {"sql": other.engine_path}
            assert len(server.requests) == 2

    with CannedServer({"/v1/adapters": downloaded(DOWNLOAD)}) as server:
        await main(server)

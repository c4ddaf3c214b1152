"""The gateway as a process: access log, spans, and `fairlead explain` for any worker."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from fairlead_testing.cli.command_line import run_program
from fairlead_testing.engines.scripted import well_behaved
from fairlead_testing.gateway.gateway_process import process_before
from fairlead_testing.http.raw_client import request
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer

pytestmark = pytest.mark.sockets

GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "tell me of canary-7c1e"}], "stream": True}
REQUESTS = 12


async def explain(request_id: str, manage: str) -> str:
    done = await asyncio.to_thread(run_program, "explain", "request", request_id, "--manage", manage)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_every_workers_requests_are_logged_traced_and_explained(tmp_path: Path) -> None:
    log = tmp_path / "access.log"

    async def main(collector: CannedServer) -> list[str]:
        settings = {
            "FAIRLEAD_ACCESS_LOG": str(log),
            "FAIRLEAD_TRACE_ENDPOINT": collector.url,
            "FAIRLEAD_TRACE_SAMPLE": "1",
        }
        async with process_before(
            tmp_path, well_behaved, options=("--workers", "2"), environ=os.environ | settings
        ) as (gateway, *_):
            answers = await asyncio.gather(*(request(gateway.url, GOOD) for _ in range(REQUESTS)))
            ids = [answer.fields["x-fairlead-decision"] for answer in answers]
            for request_id in (min(ids), max(ids)):
                assert (await explain(request_id, gateway.manage)).startswith(f"request {request_id} · to default/tiny")
            text = (await gateway.get("/metrics")).body.decode()
            assert f'fairlead_gateway_overhead_seconds_count{{model="default/tiny"}} {REQUESTS}\n' in text
            assert "fairlead_gateway_access_log_dropped_total 0\n" in text
            assert "fairlead_gateway_spans_dropped_total 0\n" in text
            gateway.process.terminate()
            assert await gateway.wait() == 0
        return ids

    with CannedServer({"/v1/traces": CannedResponse([b"{}"])}) as collector:
        ids = await main(collector)
        bodies = [asked.body for asked in collector.requests]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(line["request_id"] for line in lines) == sorted(ids)
    spans = [
        span
        for body in bodies
        for resource in json.loads(body)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    assert len(spans) == 2 * REQUESTS
    assert {line["trace_id"] for line in lines} == {span["traceId"] for span in spans}
    assert "canary" not in log.read_text() + b"".join(bodies).decode()


@pytest.mark.parametrize(
    ("name", "value"), [("FAIRLEAD_TRACE_SAMPLE", "often"), ("FAIRLEAD_ACCESS_LOG", "/no/such/folder/access.log")]
)
async def test_settings_that_cannot_be_meant_are_refused_before_anything_listens(
    tmp_path: Path, name: str, value: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fairlead_gateway", "--fleet", str(tmp_path / "fleet.yaml")),
        *("--listen", "127.0.0.1:0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, name: value},
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, out) == (2, b"")
    assert name.encode() in err
    assert err.count(b"\n") == 1

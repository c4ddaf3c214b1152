"""The access log: a line for every request, no prompt or response, and no request waits for it."""

import asyncio
import json
import os
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import SettingsError
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead.settings import GatewaySettings
from fairlead_gateway.telemetry.worker.observers import RequestObservers, create_observers
from fairlead_gateway.telemetry.worker.settings import ObservabilitySettings, parse_observability_settings
from fairlead_gateway.tenants.supervisor.tenant_file import KeyFile
from fairlead_gateway.tenants.worker.api_keys import ApiKeys, key_digest
from fairlead_testing.engines.scripted import Script, SilentEngine, scripted_engine, silent, well_behaved
from fairlead_testing.gateway.running_gateway import (
    MODEL_KEY,
    RunningGateway,
    chat,
    count_queued,
    gateway_of,
    running_gateway,
    slow_fleet,
)
from fairlead_testing.http.raw_client import RawConnection, get_request, post_request, request, send
from fairlead_testing.simulated.event_loop import running_clock
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

CANARY = "canary-7c1e"
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": f"tell me of {CANARY}"}]}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def logging(target: str, limits: Limits | None = None, **more: Any) -> RequestObservers:
    what = ObservabilitySettings(access_log=target, **more)
    draw = random.Random(1).getrandbits
    return RequestObservers(what, clock=running_clock(), limits=limits or Limits(), instance_id="gw", draw_bits=draw)


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert CANARY not in text
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@asynccontextmanager
async def gateway(
    watching: RequestObservers, script: Script = well_behaved, *, keys: ApiKeys | None = None
) -> AsyncIterator[RunningGateway]:
    async with gateway_of(script, observers=watching, api_keys=keys) as (running, *_):
        yield running


async def test_a_request_is_one_line_with_what_became_of_it(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with gateway(logging(str(path))) as running:
        await request(running.url, BODY | {"stream": True})
        await request(running.url, BODY, path="/v1/chat/completions?secret=query")
    streamed, plain = lines(path)
    assert TIME.fullmatch(streamed["time"])
    assert streamed["request_id"] == "req-1"
    assert (streamed["method"], streamed["path"]) == ("POST", "/v1/chat/completions")
    assert (streamed["model"], streamed["stream"], streamed["status"], streamed["error"]) == (
        MODEL_KEY,
        True,
        200,
        None,
    )
    assert (streamed["instance"], streamed["rule"], streamed["attempts"]) == ("e-0/0/0", "only-one", 1)
    assert streamed["client"] == "127.0.0.1"
    assert (streamed["caller"], streamed["trace_id"], streamed["handoff"]) == (None, None, None)
    assert streamed["queued_seconds"] == 0
    assert 0 < streamed["overhead_seconds"] < streamed["ttft_seconds"] <= streamed["duration_seconds"]
    assert (streamed["prompt_tokens"], streamed["cached_tokens"], streamed["output_tokens"]) == (7, 4, 3)
    assert streamed["predicted_cached_tokens"] == 0
    assert (plain["stream"], plain["ttft_seconds"]) == (False, None)
    assert "query" not in path.read_text()


async def test_a_line_has_the_id_of_the_client_and_the_one_that_engines_get(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with gateway(logging(str(path))) as running:
        await request(running.url, BODY, more="x-request-id: mine\r\n")
    (line,) = lines(path)
    assert (line["request_id"], line["decision"]) == ("mine", "req-1")


async def test_what_never_reached_an_engine_has_a_line_too(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with gateway(logging(str(path))) as running:
        await request(running.url, BODY | {"model": "nobody"})
        await request(running.url, BODY, path="/nowhere?x=1")
        await send(running.url, get_request("/v1/models"))
        await send(running.url, get_request("/readyz"))
        await send(running.url, get_request("/v1/models", method="OPTIONS"))
        await send(running.url, f"GET {CANARY}\r\n\r\n".encode())
        running.gateway.update_fleet(Fleet(2, 2, running.gateway.stages.routers.fleet.models, {MODEL_KEY: ()}))
        await request(running.url, BODY)
    rows = [(line["path"], line["status"], line["error"], line["model"]) for line in lines(path)]
    assert rows == [
        ("/v1/chat/completions", 404, "model_not_found", None),
        ("/nowhere", 404, "unknown_url", None),
        ("/v1/models", 200, None, None),
        ("/v1/models", 200, None, None),
        (None, 400, "malformed_http", None),
        ("/v1/chat/completions", 503, "no_ready_instance", MODEL_KEY),
    ]


async def test_the_name_of_the_key_is_told_and_never_the_key(tmp_path: Path) -> None:
    path, keyfile = tmp_path / "access.log", tmp_path / "keys.yaml"
    keyfile.write_text(f'keys: [{{name: team-a, digest: "{key_digest(b"the-key", b"pepper").hex()}"}}]')
    file = KeyFile(keyfile, Limits())
    await file.load()
    keys = ApiKeys(b"pepper", file.names_by_digest)
    async with gateway(logging(str(path)), keys=keys) as running:
        await request(running.url, BODY, more="authorization: Bearer the-key\r\n")
        await request(running.url, BODY, more="authorization: Bearer another-key\r\n")
    known, unknown = lines(path)
    assert (known["caller"], unknown["caller"], unknown["error"]) == ("team-a", None, "invalid_api_key")
    assert "-key" not in path.read_text()


async def test_clients_that_leave_have_a_line_whenever_they_did(tmp_path: Path) -> None:
    path = tmp_path / "access.log"

    async with gateway(logging(str(path)), silent) as running:
        leaving = await RawConnection.connect(running.url)
        await leaving.send(post_request(BODY))
        await wait_until(lambda: any(load.inflight for load in running.loads().values()))
        await leaving.close()
        await wait_until(lambda: not running.gateway.inflight_count())
    (line,) = lines(path)
    assert (line["status"], line["error"], line["client"]) == (499, "client-gone", "127.0.0.1")


async def test_plain_requests_that_waited_have_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    silent = SilentEngine()
    limits = replace(Limits(), queued_requests=2)
    async with (
        scripted_engine(silent.script) as engine,
        running_gateway(slow_fleet([engine.url]), limits, observers=logging(str(path))) as running,
    ):
        first = asyncio.create_task(request(running.url, chat(400)))
        await wait_until(lambda: len(engine.calls) == 1)
        waiting = asyncio.create_task(request(running.url, BODY))
        await wait_until(lambda: count_queued(running) == 1)
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(BODY))
        await wait_until(lambda: count_queued(running) == 2)
        assert (await request(running.url, BODY)).status == 503
        await connection.close()
        await wait_until(lambda: count_queued(running) == 1)
        silent.go_on.set()
        assert (await first).status == (await waiting).status == 200
    by_id = {line["request_id"]: line for line in lines(path)}
    served, left, refused = (by_id[f"req-{number}"] for number in (2, 3, 4))
    assert (served["status"], served["instance"], served["error"]) == (200, "e-0/0/0", None)
    assert 0.0 < served["queued_seconds"] < served["duration_seconds"]
    assert (left["status"], left["instance"], left["error"]) == (499, None, "client-gone")
    assert (refused["status"], refused["instance"], refused["error"]) == (503, None, "overloaded")


async def test_addresses_are_left_out_where_they_are_switched_off(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with gateway(logging(str(path), log_clients=False)) as running:
        await request(running.url, BODY)
        await request(running.url, BODY, path="/nowhere")
    assert [line["client"] for line in lines(path)] == [None, None]
    assert "127.0.0.1" not in path.read_text()


async def test_a_sampled_request_names_its_trace(tmp_path: Path) -> None:
    path = tmp_path / "access.log"

    def trace_of(watching: RequestObservers) -> str:
        watching.close()
        return str(lines(path)[0]["trace_id"])

    watching = logging(str(path), Limits(span_batch_seconds=0.0), trace_endpoint="http://127.0.0.1:9", trace_share=1.0)
    async with gateway(watching) as running:
        assert (await request(running.url, BODY)).fields["traceresponse"].split("-")[1] == trace_of(watching)


async def test_a_trace_that_is_only_passed_on_is_named_too(tmp_path: Path) -> None:
    path, trace = tmp_path / "access.log", "0af7651916cd43dd8448eb211c80319c"
    async with gateway(logging(str(path))) as running:
        await request(running.url, BODY, more=f"traceparent: 00-{trace}-b7ad6b7169203331-00\r\n")
        await request(running.url, BODY, more="traceparent: 00-nothing\r\n")
    assert [line["trace_id"] for line in lines(path)] == [trace, None]


@pytest.mark.sockets
async def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with gateway(logging(str(path))) as running:
        await request(running.url, BODY)
        await wait_until(lambda: path.exists() and path.read_text() != "")
        path.rename(tmp_path / "access.log.1")
        await request(running.url, BODY)
    assert len(lines(path)) == len(lines(tmp_path / "access.log.1")) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
async def test_a_full_disk_costs_lines_and_no_request() -> None:
    async with gateway(logging("/dev/full")) as running:
        for _ in range(3):
            assert (await request(running.url, BODY)).status == 200
    assert running.gateway.telemetry.non_model_counters == {"access_log_dropped_total": 3}
    (note,) = [note for note in running.gateway.readiness()[1] if "access-log" in note]
    assert "No space left on device" in note


async def test_unread_sink_delays_no_request_and_dropped_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    watching = logging(str(path), replace(Limits(), access_log_lines_pending=5))

    try:
        async with gateway(watching) as running:
            own = running.gateway.telemetry.non_model_counters
            connection = await RawConnection.connect(running.url)
            while own["access_log_dropped_total"] < 3:
                await connection.send(post_request(BODY, close=False))
                assert (await connection.read_response()).status == 200
            await connection.close()
            with suppress(BlockingIOError):  # all is read, and the rest not yet written
                while (await asyncio.to_thread(os.read, reading, 1 << 20)).count(b"\n") > 5:  # let go what is stuck
                    pass
    finally:
        os.close(reading)


# --- settings -----------------------------------------------------------------------------------------------------------


def test_nothing_is_made_while_nothing_is_wanted() -> None:
    assert parse_observability_settings(GatewaySettings()) == ObservabilitySettings()
    assert parse_observability_settings(GatewaySettings(access_log="0")).access_log is None
    assert create_observers(ObservabilitySettings(), clock=SystemClock(), limits=Limits(), instance_id="gw") is None


def test_the_settings_say_where_lines_and_spans_go() -> None:
    settings = parse_observability_settings(
        GatewaySettings(
            access_log="-",
            access_log_clients="0",
            trace_endpoint="https://collector:4318/otlp",
            trace_sample="0.25",
            trace_headers="authorization=Bearer a=b, x-scope=team",
        )
    )
    assert settings == ObservabilitySettings(
        access_log="-",
        log_clients=False,
        trace_endpoint="https://collector:4318/otlp",
        trace_headers=(("authorization", "Bearer a=b"), ("x-scope", "team")),
        trace_share=0.25,
    )
    assert parse_observability_settings(GatewaySettings(access_log="1")).access_log == "1"
    assert parse_observability_settings(GatewaySettings(access_log="/fairlead.log")).access_log == "/fairlead.log"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"trace_sample": "2"}, "FAIRLEAD_TRACE_SAMPLE"),
        ({"trace_sample": "nan"}, "FAIRLEAD_TRACE_SAMPLE"),
        ({"trace_sample": "often"}, "FAIRLEAD_TRACE_SAMPLE"),
        ({"trace_sample": "0.1"}, "FAIRLEAD_TRACE_ENDPOINT"),
        ({"trace_endpoint": "collector:4318"}, "FAIRLEAD_TRACE_ENDPOINT"),
        ({"trace_endpoint": "http://collector:99999"}, "FAIRLEAD_TRACE_ENDPOINT"),
        ({"trace_headers": "secret", "trace_endpoint": "http://c"}, "FAIRLEAD_TRACE_HEADERS"),
        ({"trace_headers": "a b=secret", "trace_endpoint": "http://c"}, "FAIRLEAD_TRACE_HEADERS"),
        ({"access_log_clients": "maybe"}, "FAIRLEAD_ACCESS_LOG_CLIENTS"),
        ({"access_log": "/no/such/folder/access.log"}, "FAIRLEAD_ACCESS_LOG"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused_by_its_name(changes: dict[str, str], field: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_observability_settings(GatewaySettings(**changes))
    assert refused.value.field == field
    assert "secret" not in str(refused.value)

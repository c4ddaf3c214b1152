"""The autoscaler's port: probes, metrics, looks and hints, over real HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fairlead.limits import Limits
from fairlead_autoscaler.history.recorder import decode_record
from fairlead_autoscaler.service import AutoscalerService, ServiceConfig
from fairlead_testing.processes import unused_port
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

KEY = "default/tiny"


@asynccontextmanager
async def running_service(
    harness: Any, *, token: str | None = None, hosts: tuple[str, ...] = (), seconds: float = 60.0
) -> AsyncIterator[tuple[httpx.AsyncClient, AutoscalerService]]:
    """Runs a process around a simulated world and passes a client of its port."""

    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    gateway = f"http://127.0.0.1:{unused_port()}"  # the gateway is away
    plan = ServiceConfig(harness, harness, [gateway], "127.0.0.1", 0, token, hosts)
    process = AutoscalerService(plan, harness.clock, announce=ready.set_result, limits=Limits())
    running = asyncio.create_task(process.run())
    async with (
        asyncio.timeout(seconds),
        httpx.AsyncClient(base_url=(await ready).removeprefix("ready ")) as client,
    ):
        await wait_until(lambda: process.control_loop.counters.ticks + process.control_loop.counters.skipped > 0)
        yield client, process
        process.stop()
        await running


async def test_ready_says_what_is_wrong_and_is_not_ready_while_the_world_is_away(harness: Any) -> None:
    async with running_service(harness) as (client, process):
        assert (await client.get("/healthz")).status_code == 200
        answer = await client.get("/readyz")
        assert answer.status_code == 200
        assert "is missing: ConnectionRefusedError: " in answer.text
        harness.unavailable = "no API server"
        await process.control_loop.tick()
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert "no API server" in answer.text


async def test_metrics_say_what_is_asked_for_what_there_should_be_and_by_which_rule(harness: Any) -> None:
    async with running_service(harness) as (client, _):
        text = (await client.get("/metrics")).text
        seen = {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert seen["fairlead_autoscaler_desired_replicas", (KEY, "main")] == 2
        assert seen["fairlead_autoscaler_wanted_replicas", (KEY, "main")] == 2
        assert seen["fairlead_autoscaler_ready_replicas", (KEY, "main")] == 2
        assert seen["fairlead_autoscaler_signals", (KEY,)] == 0
        assert seen["fairlead_autoscaler_gateways_missing", ()] == 1
        assert seen["fairlead_autoscaler_decisions_total", (KEY, "main", "metrics-missing")] == 1
        assert ("fairlead_autoscaler_input", (KEY, "need_replicas", "main")) in seen


async def test_the_last_look_the_look_at_a_moment_and_the_recording(harness: Any) -> None:
    async with running_service(harness) as (client, process):
        first = harness.clock.wall()
        harness.clock.advance(5.0)
        await process.control_loop.tick()
        now = (await client.get("/autoscaling")).json()
        assert now["models"][KEY]["wall"] == first + 5.0
        assert now["models"][KEY]["rulings"]["main"]["rule"] == "metrics-missing"
        look = decode_record((await client.get("/autoscaling/look", params={"model": KEY})).content)
        assert look.wall == first + 5.0
        look = decode_record((await client.get("/autoscaling/look", params={"model": KEY, "at": first + 1})).content)
        assert look.wall == first
        lines = (await client.get("/autoscaling/recording", params={"model": KEY})).content.splitlines()
        assert [decode_record(line).wall for line in lines] == [first, first + 5.0]
        missing = await client.get("/autoscaling/look", params={"model": "default/no"})
        assert missing.status_code == 404
        assert KEY in missing.json()["error"]["message"]
        early = await client.get("/autoscaling/look", params={"model": KEY, "at": first - 1})
        assert early.status_code == 404
        begins = datetime.fromtimestamp(first, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        assert f"the first record is of {begins}" in early.json()["error"]["message"]
        for at in ("noon", "", "nan", "inf", "9" * 400):
            for path, name in (("/autoscaling/look", "at"), ("/autoscaling/recording", "since")):
                refused = await client.get(path, params={"model": KEY, name: at})
                assert refused.status_code == 400
                message = refused.json()["error"]["message"]
                assert message == f"{name}={at[:70]} is not a time; write Unix seconds, such as {name}=1763726400.5"


async def test_a_hint_is_json_of_a_model_that_is_scaled(harness: Any) -> None:
    async with running_service(harness) as (client, process):
        hint = msgspec.json.encode({"model": KEY})
        kind = {"content-type": "application/json"}
        assert (await client.post("/wake", content=hint, headers=kind)).status_code == 200
        assert (await client.post("/wake", json={"model": "default/no"})).status_code == 404
        assert (await client.post("/wake", content=hint)).status_code == 415
        for body in (b"", b"[]", b"{", b'{"model": 1}'):
            assert (await client.post("/wake", content=body, headers=kind)).status_code == 400
        assert (await client.post("/wake", content=b"x" * 9_000, headers=kind)).status_code == 413
        assert process.control_loop.counters.wakes == 1


async def test_with_a_token_only_probes_and_metrics_are_open(harness: Any) -> None:
    async with running_service(harness, token="right") as (client, _):
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await client.get(path)).status_code == 200
        for path in ("/autoscaling", "/autoscaling/recording", f"/autoscaling/look?model={KEY}"):
            assert (await client.get(path)).status_code == 401
            assert (await client.get(path, headers={"authorization": "Bearer wrong"})).status_code == 401
            assert (await client.get(path, headers={"authorization": "Bearer right"})).status_code == 200
        assert (await client.post("/wake", json={"model": KEY})).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:9092"},
        {"origin": "https://evil.example"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    ],
)
async def test_a_web_page_of_another_site_can_neither_read_nor_wake(harness: Any, headers: dict[str, str]) -> None:
    async with running_service(harness) as (client, process):
        for path in ("/autoscaling", "/autoscaling/recording", "/metrics"):
            assert (await client.get(path, headers=headers)).status_code == 403
        assert (await client.post("/wake", json={"model": KEY}, headers=headers)).status_code == 403
        assert process.control_loop.counters.wakes == 0


async def test_names_of_services_and_listed_names_are_served(harness: Any) -> None:
    async with running_service(harness, hosts=("Scaler.example.org",)) as (client, _):
        for host in ("fairlead-autoscaler.fairlead.svc:8080", "localhost", "scaler.example.org"):
            assert (await client.get("/autoscaling", headers={"host": host})).status_code == 200


async def test_two_tokens_are_none(harness: Any) -> None:
    async with running_service(harness, token="right") as (client, _):
        for tokens in (("right", "wrong"), ("wrong", "right"), ("right", "right")):
            sent = [("authorization", f"Bearer {token}") for token in tokens]
            assert (await client.get("/autoscaling", headers=sent)).status_code == 401


async def test_an_authorization_that_is_not_utf8_is_refused(harness: Any) -> None:
    async with running_service(harness, token="right") as (client, _):
        sent = [(b"authorization", b"Bearer \xff\xfe")]
        assert (await client.get("/autoscaling", headers=sent)).status_code == 401


async def test_header_that_is_no_text_and_a_nested_hint_are_refused(harness: Any) -> None:
    async with running_service(harness, token="right") as (client, _):
        answer = await client.get("/autoscaling", headers={b"authorization": b"Bearer \xff\xfe"})
        assert answer.status_code == 401
        hint = {"authorization": "Bearer right", "content-type": "application/json"}
        answer = await client.post("/wake", headers=hint, content=b'{"x": ' + b"[" * 4_000)
        assert answer.status_code == 400


async def test_readiness_names_no_model_and_no_gateway_to_those_without_the_token(harness: Any) -> None:
    async with running_service(harness, token="secret") as (client, _):
        assert (await client.get("/readyz")).text == "ready\n"
        status = await client.get("/autoscaling", headers={"authorization": "Bearer secret"})
        assert "is missing: ConnectionRefusedError: " in status.text

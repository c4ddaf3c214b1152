"""Gateways as processes that share a ledger: nothing is lost at their end, nothing counts twice."""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from fairlead.fleet.file import format_fleet_file
from fairlead.usage.ledger_reader import read_ledger
from fairlead_testing.engines.disaggregated import engine_process
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.gateway.running_gateway import fleet_of
from fairlead_testing.http.raw_client import request

pytestmark = pytest.mark.sockets

REQUESTS = 12


async def post(gateway: GatewayProcess, number: int) -> tuple[int, int]:
    """Returns the prompt and answer tokens that the engine reported."""
    body = {"model": "tiny", "prompt": f"secret-canary {number} " * (1 + number), "max_tokens": 3 + number}
    answer = await request(gateway.url, body, path="/v1/completions")
    assert answer.status == 200
    usage = answer.json["usage"]
    return usage["prompt_tokens"], usage["completion_tokens"]


async def test_ledger_of_two_gateways_is_what_engines_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = tmp_path / "ledger"
    monkeypatch.setenv("FAIRLEAD_USAGE_DIR", str(ledger))
    async with engine_process() as engine:
        price = '    price: {input: "0.4", output: "2"}\n'
        text = format_fleet_file(fleet_of([engine.url])).replace("    instances:", price + "    instances:")
        fleet = tmp_path / "fleet.yaml"
        fleet.write_text(text.replace("pool: main", 'pool: main, costPerHour: "3.60"'))
        async with gateway_process(fleet, "--workers", "2") as first, gateway_process(fleet) as second:
            used = await asyncio.gather(*[post(first if at % 2 else second, at) for at in range(REQUESTS)])
            await first.get_json("/api/usage?by=model")
            while not read_ledger(ledger, "2020-01-01", "2099-01-01").replicas:  # it counts whole seconds
                await first.get_json("/api/usage?by=model")
            for gateway in (first, second):
                gateway.process.send_signal(signal.SIGTERM)
                assert await gateway.wait() == 0
        content = read_ledger(ledger, "2020-01-01", "2099-01-01")
        assert sum(row.requests for row in content.usage) == REQUESTS
        prompt, output = sum(counts[0] for counts in used), sum(counts[1] for counts in used)
        assert sum(row.input_tokens for row in content.usage) == prompt
        assert sum(row.output_tokens for row in content.usage) == output
        assert sum(row.cost_nano_usd for row in content.usage) == 400 * prompt + 2_000 * output
        assert {span.view.nano_usd_per_hour for span in content.replicas} == {3_600_000_000}
        assert content.broken == 0
        for file in ledger.iterdir():
            assert "secret-canary" not in file.read_text()


async def test_ledger_answers_over_the_management_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLEAD_USAGE_DIR", str(tmp_path / "ledger"))
    async with engine_process() as engine:
        fleet = tmp_path / "fleet.yaml"
        fleet.write_text(format_fleet_file(fleet_of([engine.url])))
        async with gateway_process(fleet) as gateway:
            prompt, output = await post(gateway, 1)
            answer = {"usage": []}
            async with asyncio.timeout(60):
                while not answer["usage"]:
                    answer = await gateway.get_json("/api/usage?by=model")
            (row,) = answer["usage"]
            assert (row["model"], row["input_tokens"], row["output_tokens"]) == ("default/tiny", prompt, output)
            assert (row["requests"], row["unpriced"], row["tenant"]) == (1, 1, "")
            assert await gateway.metric("fairlead_gateway_tenant_requests_total") == 1
            assert await gateway.metric("fairlead_gateway_usage_records_lost_total") == 0
            for query, message in (
                ("from=yesterday", "from: Value error, write a day like 2026-11-24"),
                ("to=1700000000", "to: Value error, write a day like 2026-11-24"),
                ("by=tenants", "by: String should match pattern"),
            ):
                refused = await gateway.get(f"/api/usage?{query}")
                assert refused.status == 400
                assert json.loads(refused.body)["error"]["message"].startswith(message)
            longest = await gateway.get_json("/api/usage?from=2000-01-01&to=2020-01-01")
            assert (longest["first_day"], longest["usage"]) == ("2018-11-28", [])


async def test_gateway_without_a_ledger_says_so(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("models: []\n")
    async with gateway_process(fleet) as gateway:
        answer = await gateway.get("/api/usage")
        assert (answer.status, "FAIRLEAD_USAGE_DIR" in answer.body.decode()) == (404, True)

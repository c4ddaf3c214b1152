"""The checks understand the notes of a real gateway that loses its cluster and its Redis."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from fairlead_cli.cluster.checks.check import CheckOutcome
from fairlead_cli.cluster.checks.runner import run_checks
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.pod_http import PodReport, Readiness, parse_metrics
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.kube.fake_server import fake_api_server
from fairlead_testing.waiting import wait_until

Build = Mapping[str, Callable[..., Any]]


async def gateway_report(gateway: GatewayProcess) -> PodReport:
    readiness = msgspec.json.decode((await gateway.get("/readyz")).body, type=Readiness)
    return PodReport("g", "fairlead", readiness, parse_metrics((await gateway.get("/metrics")).body.decode()))


def failing(facts: ClusterFacts, report: PodReport) -> dict[str, str]:
    rows = run_checks(replace(facts, pod_reports={**facts.pod_reports, "gateway": [report]}))
    return {row.check.id: row.verdict.lines[0] for row in rows if row.verdict.outcome is CheckOutcome.FAILED}


async def test_gateway_notes_on_lost_fleet_and_redis_are_recognised(
    facts: ClusterFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_api_server() as fake:
        document = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": fake.config().server}}],
            "users": [{"name": "u", "user": {"token": "right"}}],
        }
        (tmp_path / "config").write_text(yaml.safe_dump(document))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        monkeypatch.setenv("FAIRLEAD_REDIS_URL", f"unix://{tmp_path}/no-redis")
        async with gateway_process(None, "--kube", "x") as gateway:
            await wait_until(lambda: _names(gateway, facts, "redis"))
            assert set(failing(facts, await gateway_report(gateway))) == {"redis"}
            fake.token = "another"
            fake.end_watches()
            await wait_until(lambda: _names(gateway, facts, "gateway-fleet"))
            failures = failing(facts, await gateway_report(gateway))
            assert set(failures) == {"redis", "gateway-fleet"}
            assert "Redis is away" in failures["redis"]
            assert "Unauthorized" in failures["gateway-fleet"] or "not accept" in failures["gateway-fleet"]


async def _names(gateway: GatewayProcess, facts: ClusterFacts, check: str) -> bool:
    return check in failing(facts, await gateway_report(gateway))

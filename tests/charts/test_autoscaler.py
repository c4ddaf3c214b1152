"""The autoscaler on a real API server, with the service account, roles and guard of the chart."""

import asyncio
import json
import os
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import NotFound
from fairlead.kube.field_managers import replicas_managers
from fairlead.kube.resources import DEPLOYMENTS, EVENTS, MODEL_DEPLOYMENTS
from fairlead.runtime.clock import SystemClock
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.helm import apply_rights, kubeconfig_for_account, render_chart
from fairlead_testing.kube.manifests import simulated_model
from fairlead_testing.kube.operator_process import operator_process
from fairlead_testing.prometheus import parse_scrape
from fairlead_testing.waiting import wait_until

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
PLACE = "scaled"
POOL = {"name": "main", "acceleratorClassName": "cpu", "minReplicas": 0, "maxReplicas": 3}
MODEL = simulated_model("qwen", PLACE, pools=[POOL], autoscaling={"mode": "Auto"}, slo={"ttft": "1s"})
FREQUENT_DECISIONS = """
from functools import partial
from fairlead.limits import Limits
from fairlead_autoscaler import __main__
__main__.Limits = partial(Limits, autoscaler_tick_seconds=1.0)
raise SystemExit(__main__.main())
"""
"""The autoscaler, which decides every second, not every 5."""
SELDOM = frozenset({"fairlead_autoscaler_write_errors_total", "fairlead_autoscaler_usd_per_hour"})
"""There once something failed, or an accelerator has a price."""


def api_of(server: ApiServer) -> KubeApi:
    return KubeApi(server.config(), SystemClock(), lambda: 0.5)


class FakeGateway:
    """A gateway with queued requests."""

    def __init__(self) -> None:
        self.held, self.arrived, self.asked = 0, 0, 0

    async def metrics(self, _: web.Request) -> web.Response:
        self.asked += 1
        labels = f'{{model="{PLACE}/qwen"}}'
        lines = [
            f"fairlead_gateway_uptime_seconds {100 + self.asked}",
            f"fairlead_gateway_received_total{labels} {self.arrived}",
            f"fairlead_gateway_received_prompt_tokens_total{labels} {100 * self.arrived}",
            f"fairlead_gateway_held{labels} {self.held}",
        ]
        return web.Response(text="\n".join(lines) + "\n")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.add_routes([web.get("/metrics", self.metrics)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


@asynccontextmanager
async def autoscaler(kubeconfig: Path, gateway: str) -> AsyncIterator[str]:
    """Runs an autoscaler, and yields its address."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLEAD_")}
    command = (sys.executable, "-c", FREQUENT_DECISIONS, "--kube", f"--gateway={gateway}")
    process = await asyncio.create_subprocess_exec(
        *command,
        f"--lease-namespace={PLACE}",
        env=environ | {"KUBECONFIG": str(kubeconfig)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().removeprefix("ready ").strip()
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 60.0) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def wake(url: str) -> None:
    body = json.dumps({"model": f"{PLACE}/qwen"}).encode()
    request = urllib.request.Request(f"{url}/wake", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10.0):
        pass


def metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10.0) as answer:
        return str(answer.read().decode())


async def number(api: KubeApi) -> tuple[int, tuple[str, ...]]:
    try:
        live = await api.get(DEPLOYMENTS, PLACE, "qwen-main")
    except NotFound:
        return -1, ()
    return live["spec"]["replicas"], replicas_managers(live)


async def reason(api: KubeApi) -> str:
    status = (await api.get(MODEL_DEPLOYMENTS, PLACE, "qwen")).get("status") or {}
    return next(
        (condition["reason"] for condition in status.get("conditions") or [] if condition["type"] == "Autoscaling"), ""
    )


async def wait_until_equal(call: Any, *wanted: Any) -> None:
    async def so() -> bool:
        return bool(await call() in wanted)

    await wait_until(so)


async def test_autoscaler_wakes_yields_and_releases_with_exactly_its_permissions(
    api_server: ApiServer, program: Path, assert_reported: Callable[..., None], tmp_path: Path
) -> None:
    chart, gateway, kubeconfig = render_chart(program, f"--namespace={PLACE}"), FakeGateway(), tmp_path / "kubeconfig"
    async with api_of(api_server) as api:
        await apply_rights(api, chart, PLACE)
        kubeconfig.write_text(await kubeconfig_for_account(api_server, PLACE, "fairlead-autoscaler"))
        await api.apply(MODEL, "kubectl")
        async with (
            operator_process(api_server.kubeconfig, tmp_path / "log", f"--lease-namespace={PLACE}"),
            gateway.serving() as manage,
            autoscaler(kubeconfig, manage) as url,
        ):
            await wait_until_equal(lambda: number(api), (0, ("fairlead",)))
            await wait_until_equal(lambda: reason(api), "Deciding")
            gateway.held, gateway.arrived = 1, 1
            await asyncio.to_thread(wake, url)
            await wait_until_equal(lambda: number(api), (1, ("fairlead-autoscaler",)))
            await wait_until(lambda: tells(api, "ScaledUp"))
            scrape = parse_scrape(await asyncio.to_thread(metrics, url), namespace=PLACE, pod="a-1")
            assert_reported("fairlead_autoscaler_", scrape, seldom=SELDOM)

            theirs = {"spec": {"replicas": 3}}
            await api.patch_merge(DEPLOYMENTS, PLACE, "qwen-main", theirs, "kubectl", subresource="scale")
            await wait_until_equal(lambda: reason(api), "SetElsewhere")
            assert await number(api) == (3, ("kubectl",))

            ours = {"spec": {"replicas": 2}}  # how docs/reference/conditions.md gives it back
            name = "fairlead-autoscaler"
            await api.patch_merge(DEPLOYMENTS, PLACE, "qwen-main", ours, name, subresource="scale")
            await wait_until_equal(lambda: reason(api), "Deciding")

            off = {"spec": {"autoscaling": {"mode": "Disabled"}}}
            await api.patch_merge(MODEL_DEPLOYMENTS, PLACE, "qwen", off, "kubectl")
            await wait_until_equal(lambda: reason(api), "")
            assert (await number(api))[0] > 0


async def tells(api: KubeApi, reason: str) -> bool:
    return any(event["reason"] == reason for event in (await api.list(EVENTS, PLACE)).items)

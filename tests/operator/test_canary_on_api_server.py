"""A canary on a real API server: its objects, its status, and its end by hand."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fairlead.kube.errors import Invalid
from fairlead.kube.resources import DEPLOYMENTS, MODEL_DEPLOYMENTS, SERVICES, labels_of
from fairlead_bench.operator.fault_trials import TrialCluster, open_cluster
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.operator_process import run_deployments

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
ROLLOUT = {"canary": {"steps": [10, 50], "observe": "10m"}}
SPEC: dict[str, Any] = {"replicas": 4, "rollout": ROLLOUT}


@asynccontextmanager
async def observed_canary(server: ApiServer, namespace: str, logs: Path) -> AsyncIterator[TrialCluster]:
    """Runs `check` with a model of four instances, and a change that has a canary."""

    async with open_cluster(server, namespace, logs) as here:
        here.operators.start()
        await here.model("qwen", **SPEC)
        await here.until_settled()
        await here.model("qwen", "--speed=2", **SPEC)
        await wait_phase(here, "Observing")
        yield here


async def status(here: TrialCluster) -> dict[str, Any]:
    return dict((await here.api.get(MODEL_DEPLOYMENTS, here.namespace, "qwen")).get("status") or {})


async def wait_phase(here: TrialCluster, phase: str) -> None:
    async def reached() -> bool:
        await run_deployments(here.api, here.namespace)
        return bool((await status(here)).get("canary", {}).get("phase") == phase)

    await here.until(reached, f"the canary is {phase}")


async def speeds(here: TrialCluster) -> dict[str, tuple[int, bool]]:
    """Returns the replicas of each pool, and whether it has the change."""
    deployments = (await here.api.list(DEPLOYMENTS, here.namespace)).items
    return {
        labels_of(manifest)["fairlead.io/pool"]: (
            manifest["spec"]["replicas"],
            "--speed=2" in manifest["spec"]["template"]["spec"]["containers"][0]["args"],
        )
        for manifest in deployments
    }


async def wait_speeds(here: TrialCluster, expected: dict[str, tuple[int, bool]]) -> None:
    async def reached() -> bool:
        await run_deployments(here.api, here.namespace)
        return await speeds(here) == expected

    await here.until(reached, f"the pools are {expected}")


async def services(here: TrialCluster) -> set[str]:
    """Returns the pools that have a Service."""
    listed = (await here.api.list(SERVICES, here.namespace)).items
    return {labels_of(service)["fairlead.io/pool"] for service in listed}


async def wait_services(here: TrialCluster, expected: set[str]) -> None:
    """Waits for a pass of the operator that prunes; the status may come from the pass before."""

    async def reached() -> bool:
        return await services(here) == expected

    await here.until(reached, f"the pools with a Service are {expected}")


async def annotate(here: TrialCluster, value: str) -> None:
    patch = {"metadata": {"annotations": {"fairlead.io/run-revision": value}}}
    await here.api.patch_merge(MODEL_DEPLOYMENTS, here.namespace, "qwen", patch, "kubectl")


async def test_canary_has_objects_of_its_own_and_is_promoted_by_hand(api_server: ApiServer, tmp_path: Path) -> None:
    async with observed_canary(api_server, "canary-promoted", tmp_path) as here:
        assert await speeds(here) == {"main": (4, False), "main.canary": (1, True)}
        assert await services(here) == {"main", "main.canary"}
        now = await status(here)
        assert (now["canary"]["revision"], now["canary"]["weight"], now["ready"]) == (2, 10, "4/4")
        await annotate(here, "2/2")
        await wait_speeds(here, {"main": (4, True)})
        await wait_phase(here, "Promoted")
        await wait_services(here, {"main"})


async def test_canary_outlives_its_operator_and_is_ended_by_hand(api_server: ApiServer, tmp_path: Path) -> None:
    async with observed_canary(api_server, "canary-ended", tmp_path) as here:
        before = await status(here)
        here.operators.running[0].stop()
        here.operators.start()
        await here.until_rest(1)
        assert (await status(here))["canary"] == before["canary"]
        await annotate(here, "1/2")
        await wait_speeds(here, {"main": (4, False)})
        await wait_phase(here, "RolledBack")
        conditions = {condition["type"]: condition["reason"] for condition in (await status(here))["conditions"]}
        assert conditions["CanaryHealthy"] == "EndedByHand"


async def test_api_server_refuses_settings_that_cannot_work(api_server: ApiServer, tmp_path: Path) -> None:
    async with open_cluster(api_server, "canary-refused", tmp_path) as here:
        for canary, words in (
            ({"steps": [50, 10]}, "each step is above the one before"),
            ({"steps": [10, 10]}, "each step is above the one before"),
            ({"observe": "48h"}, "observe is at most 24h"),
        ):
            with pytest.raises(Invalid) as refused:
                await here.model("qwen", rollout={"canary": canary})
            assert words in refused.value.message

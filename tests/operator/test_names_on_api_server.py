"""Routes on a real API server: their status, and the fleet that gateways make."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fairlead.fleet.kubernetes.source import KubeFleetSource
from fairlead.fleet.model import Fleet
from fairlead.kube.client import KubeApi
from fairlead.kube.resources import MODEL_DEPLOYMENTS, MODEL_ROUTES, Manifest
from fairlead.limits import Limits
from fairlead.runtime.clock import Pacing, SystemClock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.manifests import manifest, simulated_model
from fairlead_testing.kube.operator_process import OperatorProcesses, apply_crds_and_namespaces
from fairlead_testing.waiting import wait_until

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
NAMESPACE = "routes"
ALIAS = "acme/assistant"


def model(name: str, *served: str) -> Manifest:
    return simulated_model(name, NAMESPACE, model={"uri": "hf://Qwen/Qwen3-8B", "servedNames": list(served)})


def route(*targets: str) -> Manifest:
    spec = {"servedNames": [ALIAS], "targets": [{"model": name} for name in targets]}
    return manifest(MODEL_ROUTES, "assistant", NAMESPACE, spec=spec)


@asynccontextmanager
async def followed(server: ApiServer) -> AsyncIterator[list[Fleet]]:
    """The fleets of a gateway of this namespace, the newest one last."""
    pacing = Pacing(SystemClock(), lambda: 0.5)
    api = KubeApi(server.config(), pacing.clock, pacing.chance)
    source, fleets = KubeFleetSource(api, pacing, namespaces=[NAMESPACE]), list[Fleet]()
    source.follows_claimants = True

    async def follow() -> None:
        async for fleet in source.watch():
            fleets.append(fleet)

    task = asyncio.create_task(follow())
    try:
        yield fleets
    finally:
        await cancel_and_wait(task)


async def test_operator_and_gateway_agree_on_names_and_targets(api_server: ApiServer, tmp_path: Path) -> None:
    operators = OperatorProcesses(api_server.kubeconfig, NAMESPACE, tmp_path)
    try:
        async with KubeApi(api_server.config(), SystemClock(), lambda: 0.5, limits=Limits(kube_attempts=2)) as api:
            await apply_crds_and_namespaces(api, NAMESPACE)
            first = operators.start()
            await wait_until(lambda: asyncio.to_thread(operators.is_leading, first))
            async with followed(api_server) as fleets:

                async def has_conditions(accepted: str, resolved: str) -> bool:
                    status = (await api.get(MODEL_ROUTES, NAMESPACE, "assistant")).get("status") or {}
                    reasons = {condition["type"]: condition["reason"] for condition in status.get("conditions") or []}
                    return reasons == {"Accepted": accepted, "ResolvedRefs": resolved}

                await api.apply(route("one"), "kubectl")
                await wait_until(lambda: has_conditions("Valid", "ModelNotFound"))
                await api.apply(model("one"), "kubectl")
                await wait_until(lambda: has_conditions("Valid", "Resolved"))
                await wait_until(lambda: bool(fleets) and "routes/one" in fleets[-1].models)
                assert fleets[-1].routes["routes/assistant"].names == ("assistant", ALIAS)

                await api.apply(model("two", ALIAS), "kubectl")
                await wait_until(lambda: "routes/two" in fleets[-1].models)
                assert fleets[-1].models["routes/two"].served_names == ()
                assert fleets[-1].routes["routes/assistant"].names == ("assistant", ALIAS)

                async def is_refused() -> bool:
                    status = (await api.get(MODEL_DEPLOYMENTS, NAMESPACE, "two")).get("status") or {}
                    taken = [
                        condition for condition in status.get("conditions") or [] if condition["type"] == "NameTaken"
                    ]
                    return bool(taken) and "the route routes/assistant" in taken[0]["message"]

                await wait_until(is_refused)
                await api.delete(MODEL_ROUTES, NAMESPACE, "assistant")
                await wait_until(lambda: fleets[-1].routes == {})
            assert await asyncio.to_thread(operators.running[first].stop) == 0, "it gives the lease to the next one"
    finally:
        operators.close()

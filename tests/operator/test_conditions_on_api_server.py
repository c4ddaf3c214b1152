"""External faults on a real API server: a condition names cause and fix, and engines keep serving."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fairlead.kube.errors import Invalid
from fairlead.kube.resources import DEPLOYMENTS, MODEL_DEPLOYMENTS, SERVICES, Manifest
from fairlead_bench.operator.fault_trials import TrialCluster, open_cluster
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.operator_process import run_deployments

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
LARGE = "x" * 4_096


@asynccontextmanager
async def settled_cluster(server: ApiServer, namespace: str, logs: Path, **more: str) -> AsyncIterator[TrialCluster]:
    """Runs `check` with an operator and a model that serves."""

    async with open_cluster(server, namespace, logs, **more) as here:
        here.operators.start()
        await here.model("qwen")
        await here.until_settled()
        yield here


async def conditions(here: TrialCluster, name: str) -> dict[str, tuple[str, str, str]]:
    status = (await here.api.get(MODEL_DEPLOYMENTS, here.namespace, name)).get("status") or {}
    return {
        condition["type"]: (condition["status"], condition["reason"], condition["message"])
        for condition in status.get("conditions") or []
    }


async def wait_stalled(here: TrialCluster, reason: str, name: str = "qwen") -> str:
    """The message, once the model is stalled by ``reason``."""
    reported: dict[str, tuple[str, str, str]] = {}

    async def said() -> bool:
        nonlocal reported
        await run_deployments(here.api, here.namespace)
        reported = await conditions(here, name)
        return reported.get("Stalled", ("", "", ""))[1] == reason

    await here.until(said, f"{name} is stalled by {reason}")
    return reported["Stalled"][2]


async def deployment(here: TrialCluster, name: str = "qwen-main") -> Manifest:
    return await here.api.get(DEPLOYMENTS, here.namespace, name)


async def test_oversized_spec_names_what_to_shorten(api_server: ApiServer, tmp_path: Path) -> None:
    async with settled_cluster(api_server, "large", tmp_path) as here:
        before = await deployment(here)
        env = [{"name": f"V{number}", "value": LARGE} for number in range(128)]
        await here.model("qwen", engine={"type": "Sim", "args": [LARGE] * 128, "env": env})
        message = await wait_stalled(here, "TooLarge")
        assert "spec.pools[main]: an object of this pool would have" in message
        assert "shorten engine.args, engine.env, template or the pool's args" in message
        assert (await conditions(here, "qwen"))["Ready"][:2] == ("True", "AllReady")
        assert (await deployment(here))["spec"] == before["spec"]
        await here.model("qwen", "--max-num-seqs=3")  # mended
        await here.until_settled()


async def test_names_are_ascii_and_values_are_not(api_server: ApiServer, tmp_path: Path) -> None:
    async with settled_cluster(api_server, "letters", tmp_path) as here:
        with pytest.raises(Invalid) as refused:
            await here.model("größe")
        assert "metadata.name" in refused.value.message
        text = "模型 größe 🚀"
        await here.model("qwen", engine={"type": "Sim", "env": [{"name": "GREETING", "value": text}]})
        await here.until_settled()
        env = (await deployment(here))["spec"]["template"]["spec"]["containers"][0]["env"]
        assert text in [variable.get("value") for variable in env]


async def test_foreign_name_is_avoided_and_reported_if_all_are_taken(api_server: ApiServer, tmp_path: Path) -> None:
    async with settled_cluster(api_server, "clash", tmp_path) as here:

        async def theirs(name: str) -> Manifest:
            spec = {"ports": [{"port": 80}], "selector": {"app": "theirs"}}
            metadata = {"name": name, "namespace": here.namespace}
            return await here.api.apply(
                {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}, "x"
            )

        await theirs("second-main")
        await here.model("second")
        await here.until_settled()
        (name,) = [name for name in await run_deployments(here.api, here.namespace) if name.startswith("second-main-")]
        await here.api.delete(MODEL_DEPLOYMENTS, here.namespace, "second")
        for kind in (DEPLOYMENTS, SERVICES):  # what the garbage collector would do
            await here.api.delete(kind, here.namespace, name)
        kept = [await theirs("second-main"), await theirs(name)]
        await here.model("second")
        message = await wait_stalled(here, "InvalidSpec", "second")
        assert f"Service {name}" in message
        assert "is not Fairlead's: remove it, or give the model another name" in message
        for service in kept:
            now = await here.api.get(SERVICES, here.namespace, service["metadata"]["name"])
            assert now["metadata"]["resourceVersion"] == service["metadata"]["resourceVersion"]
        assert (await conditions(here, "qwen"))["Ready"][:2] == ("True", "AllReady")

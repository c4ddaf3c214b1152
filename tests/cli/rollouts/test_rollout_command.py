"""``fairlead rollout`` on a real API server with the real operator: pause, resume and undo."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.resources import DEPLOYMENTS, MODEL_DEPLOYMENTS, Manifest
from fairlead.runtime.clock import SystemClock
from fairlead_cli.cluster.access.connection import local_user
from fairlead_operator.object_metadata import UNDO_ANNOTATION
from fairlead_testing.cli.command_line import run_program
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.manifests import simulated_model
from fairlead_testing.processes import unused_port
from fairlead_testing.waiting import wait_until
from fairlead_testing.yaml_documents import load_document

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[3]
SPACE = "rollouts"


@pytest.fixture
def operator(api_server: ApiServer, tmp_path: Path) -> Iterator[Path]:
    """One process of it, for the namespace of this test. Returns its log with its audit records."""
    port = str(unused_port())
    known = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLEAD_")}
    own = {
        "KUBECONFIG": str(api_server.kubeconfig),
        "FAIRLEAD_ENGINE_IMAGES": "sim=fairlead.io/sim:1",
        "FAIRLEAD_WATCH_NAMESPACES": SPACE,
        "FAIRLEAD_AUDIT_LOG": "-",
    }
    asyncio.run(_prepared(api_server))
    command = [sys.executable, "-m", "fairlead_operator", "--host", "127.0.0.1", "--port", port]
    with (tmp_path / "operator.log").open("wb") as log:
        process = subprocess.Popen([*command, "--lease-namespace", SPACE], env=known | own, stdout=log, stderr=log)
    try:
        yield tmp_path / "operator.log"
    finally:
        process.terminate()
        process.wait(60.0)


async def _prepared(server: ApiServer) -> None:
    async with _api(server) as api:
        for path in sorted((ROOT / "crds").glob("*.yaml")):
            await api.apply(load_document(path.read_text()), "test")
        await wait_until(lambda: api.has_resource(MODEL_DEPLOYMENTS))
        await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}}, "test")


def _api(server: ApiServer) -> KubeApi:
    return KubeApi(server.config(), SystemClock(), lambda: 0.5)


def rollout(server: ApiServer, *words: str) -> tuple[int, str, str]:
    """Exit code, output and complaints of the command."""
    done = run_program("rollout", *words, "-n", SPACE, "--kubeconfig", str(server.kubeconfig))
    return done.returncode, done.stdout, done.stderr


async def said(server: ApiServer, *words: str) -> str:
    """Returns the output of a successful command."""
    code, out, err = await asyncio.to_thread(rollout, server, *words)
    assert (code, err) == (0, ""), (out, err)
    return out


def model(args: list[str], **more: Any) -> Manifest:
    pools = [{"acceleratorClassName": "cpu", "minReplicas": 2}]
    return simulated_model("qwen", SPACE, engine={"type": "Sim", "args": args}, pools=pools, **more)


async def become(api: KubeApi, *wanted: str) -> None:
    """Until the engines have these arguments and the model says that nothing moves."""

    async def same() -> bool:
        deployments = (await api.list(DEPLOYMENTS, SPACE)).items
        for manifest in deployments:
            asked, generation = manifest["spec"]["replicas"], manifest["metadata"]["generation"]
            counts = dict.fromkeys(("replicas", "readyReplicas", "updatedReplicas"), asked)
            status = {**counts, "observedGeneration": generation}
            if {key: (manifest.get("status") or {}).get(key) for key in status} != status:
                name = manifest["metadata"]["name"]
                await api.patch_merge(DEPLOYMENTS, SPACE, name, {"status": status}, "kcm", subresource="status")
        reported = (await api.get(MODEL_DEPLOYMENTS, SPACE, "qwen")).get("status") or {}
        settled = {condition["type"]: condition["status"] for condition in reported.get("conditions") or []} == {
            "Ready": "True"
        }
        return settled and len(deployments) == 1 and _switches(deployments[0]) == set(wanted)

    await wait_until(same)


def _switches(deployment: Manifest) -> set[str]:
    args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    return {argument for argument in args if argument.startswith("--max-num-seqs")}


async def _wait_for_another_second(api: KubeApi) -> None:
    """Waits until the API server gives changes of the model another time than its last one."""
    fields = (await api.get(MODEL_DEPLOYMENTS, SPACE, "qwen"))["metadata"]["managedFields"]
    last = max(datetime.fromisoformat(field["time"]).timestamp() for field in fields)

    async def has_passed() -> bool:
        return time.time() >= last + 1.0

    await wait_until(has_passed)


async def reason(api: KubeApi, type: str) -> str:
    live = await api.get(MODEL_DEPLOYMENTS, SPACE, "qwen")
    conditions = (live.get("status") or {}).get("conditions") or []
    return next((str(condition["reason"]) for condition in conditions if condition["type"] == type), "")


def authors(log: Path) -> list[str]:
    """Returns who caused each rollout, by the operator's audit records."""
    lines = (line for line in log.read_text().splitlines() if line.startswith('{"log":"fairlead.audit"'))
    after = [json.loads(line)["after"] for line in lines]
    return [values["changedBy"] for values in after if values["event"] == "RolloutStarted"]


async def test_rollout_pause_resume_and_undo_on_an_api_server(api_server: ApiServer, operator: Path) -> None:
    async with _api(api_server) as api:
        await api.apply(model([]), "kubectl")
        await become(api)
        assert "qwen runs revision 1\n" in await said(api_server, "status", "qwen")

        await said(api_server, "pause", "qwen")
        await api.apply(model(["--max-num-seqs=3"]), "kubectl")  # what is applied says nothing of the pause

        async def is_paused() -> bool:
            return await reason(api, "Reconciling") == "Paused"

        await wait_until(is_paused)
        (deployment,) = (await api.list(DEPLOYMENTS, SPACE)).items
        assert (_switches(deployment), deployment["spec"]["paused"]) == (set(), True)
        code, out, _ = await asyncio.to_thread(rollout, api_server, "status", "qwen")
        assert code == 1
        assert "runs revision 1 of 2: the rollout is paused" in out
        code, _, err = await asyncio.to_thread(rollout, api_server, "undo", "qwen")
        assert code == 2
        assert "is paused" in err

        await _wait_for_another_second(api)  # else what is applied and the resumption have one time
        await said(api_server, "resume", "qwen")
        await become(api, "--max-num-seqs=3")
        before = await api.get(MODEL_DEPLOYMENTS, SPACE, "qwen")

        await said(api_server, "undo", "qwen")
        await become(api)
        after = await api.get(MODEL_DEPLOYMENTS, SPACE, "qwen")
        assert after["metadata"]["annotations"][UNDO_ANNOTATION] == "1/2"
        assert after["spec"] == before["spec"]
        out = await said(api_server, "status", "qwen")
        assert f"runs revision 1 of 2: the annotation {UNDO_ANNOTATION} asks for revision 1" in out

        patch: Manifest = {"metadata": {"annotations": {UNDO_ANNOTATION: None}}}  # as one who has kubectl only
        await api.patch_merge(MODEL_DEPLOYMENTS, SPACE, "qwen", patch, "kubectl")
        await become(api, "--max-num-seqs=3")
    person = f"{local_user()} (fairlead-cli)"
    assert authors(operator)[:2] == [person, person]  # resume, and undo


async def test_unknown_model_error_lists_existing_models(api_server: ApiServer) -> None:
    await _prepared(api_server)
    async with _api(api_server) as api:
        await api.apply(model([]), "kubectl")
    code, _, err = await asyncio.to_thread(rollout, api_server, "status", "qwem")
    assert code == 2
    assert f"no model {SPACE}/qwem" in err
    assert "known: qwen" in err
    code, out, _ = await asyncio.to_thread(rollout, api_server, "status")  # the only one
    assert (code, out.startswith(f"{SPACE}/qwen runs revision")) == (1, True)


def test_unreachable_cluster_exits_3(tmp_path: Path) -> None:
    done = run_program("rollout", "status", "qwen", "--kubeconfig", str(tmp_path / "none"))
    assert done.returncode == 3
    assert done.stderr.startswith("fairlead: ")

"""On a real API server: it takes everything that the chart makes, and the operator works with exactly its rights there."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead.clock import SystemClock
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import NotFound
from fairlead.kube.resource import (
    DEPLOYMENTS,
    EVENTS,
    LEASES,
    MODEL_DEPLOYMENTS,
    Manifest,
    Resource,
    selector,
)
from fairlead.testing.chart import CHART, rendered
from fairlead.testing.kube import ApiServer, assets
from fairlead.testing.waiting import until_async
from fairlead_gateway.testing_process import gateway_process

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
CASES = sorted((Path(__file__).parent / "values").glob("*.yaml"))
ELSEWHERE = {"ServiceMonitor", "HTTPRoute"}
"""Kinds that a cluster knows only where somebody brought them."""
RIGHTS = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
MODEL = {
    "apiVersion": MODEL_DEPLOYMENTS.api_version,
    "kind": "ModelDeployment",
    "metadata": {"name": "qwen", "namespace": "charted"},
    "spec": {
        "model": {"source": "hf://Qwen/Qwen3-8B"},
        "engine": {"kind": "sim"},
        "pools": [{"name": "main", "accelerator": "cpu"}],
    },
}


def api_of(server: ApiServer) -> KubeApi:
    return KubeApi(server.access(), SystemClock(), lambda: 0.5)


async def namespace(api: KubeApi, name: str) -> None:
    await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}, "test")


def kubectl(server: ApiServer, *arguments: str, text: str | None = None) -> str:
    program = (assets() or Path()) / "kubectl"
    if not program.exists():
        pytest.skip("no kubectl beside kube-apiserver: `.venv/bin/python e2e/cluster build` compiles it")
    command = [str(program), f"--kubeconfig={server.kubeconfig}", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("case", CASES, ids=[case.stem for case in CASES])
def test_the_api_server_takes_every_object_and_knows_every_field(
    api_server: ApiServer, program: Path, case: Path
) -> None:
    async def main() -> None:
        async with api_of(api_server) as api:
            for name in ("fairlead", "team-a", "team-b"):
                await namespace(api, name)

    asyncio.run(main())
    found = [one for one in rendered(program, f"--values={case}") if one["kind"] not in ELSEWHERE]
    arguments = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    said = kubectl(api_server, *arguments, text=yaml.safe_dump_all(found))
    assert len(said.splitlines()) == len(found)


def test_the_operator_serves_a_model_with_exactly_its_rights(
    api_server: ApiServer, program: Path, tmp_path: Path
) -> None:
    """As its service account, by the roles of the chart; the real authorizer refuses the rest."""
    found = rendered(program, "--namespace=charted")
    kubeconfig = tmp_path / "kubeconfig"

    async def main() -> None:
        async with api_of(api_server) as api:
            for path in sorted((CHART / "crds").glob("*.yaml")):
                await api.apply(yaml.safe_load(path.read_text()), "test")
            await until_async(lambda: api.serves(MODEL_DEPLOYMENTS))
            await namespace(api, "charted")
            for one in found:
                if one["kind"] in RIGHTS:
                    await api.apply(one, "test")
            token = await asyncio.to_thread(
                kubectl, api_server, "-n", "charted", "create", "token", "fairlead-operator"
            )
            kubeconfig.write_text(yaml.safe_dump(as_account(api_server, token.strip())))
            log = tmp_path / "log"
            process = started(kubeconfig, log)
            try:
                await api.apply(MODEL, "kubectl")
                await until_async(lambda: there(api, DEPLOYMENTS, "qwen-main"))
                await until_async(lambda: told(api))
                assert await there(api, LEASES, "fairlead-operator")
                await api.apply(renamed(MODEL), "kubectl")  # the old pool is pruned
                await until_async(lambda: there(api, DEPLOYMENTS, "qwen-other"))
                labels = selector({"fairlead.io/model": "qwen"})
                await until_async(lambda: only(api, labels, "qwen-other"))
            finally:
                process.send_signal(signal.SIGTERM)
                code = await asyncio.to_thread(process.wait, 60)
            said = log.read_text()
            assert code == 0, said
            assert "forbidden" not in said.lower()

    asyncio.run(main())


def test_the_gateway_finds_models_with_exactly_its_rights(
    api_server: ApiServer, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rendered(program, "--namespace=charted")

    async def main() -> None:
        async with api_of(api_server) as api:
            for path in sorted((CHART / "crds").glob("*.yaml")):
                await api.apply(yaml.safe_load(path.read_text()), "test")
            await until_async(lambda: api.serves(MODEL_DEPLOYMENTS))
            await namespace(api, "charted")
            for one in found:
                if one["kind"] in RIGHTS:
                    await api.apply(one, "test")
            await api.apply(MODEL, "kubectl")
            token = await asyncio.to_thread(kubectl, api_server, "-n", "charted", "create", "token", "fairlead-gateway")
            (tmp_path / "kubeconfig").write_text(yaml.safe_dump(as_account(api_server, token.strip())))
            monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
            async with gateway_process(None, "--kube") as gateway:
                listed = await gateway.told("/api/fleet")
                assert "charted/qwen" in str(listed)
                assert "forbidden" not in (await gateway.notes()).lower()

    asyncio.run(main())


def started(kubeconfig: Path, log: Path) -> subprocess.Popen[bytes]:
    """An operator that is who the kubeconfig says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    others = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLEAD_")}
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "fairlead_operator", "--host", "127.0.0.1", "--port", port],
            env={**others, "KUBECONFIG": str(kubeconfig), "FAIRLEAD_ENGINE_IMAGES": "sim=example.com/sim:1"},
            stdout=out,
            stderr=out,
        )


def as_account(server: ApiServer, token: str) -> dict[str, Any]:
    """The administrator's kubeconfig with the token in place of the certificate."""
    config: dict[str, Any] = yaml.safe_load(server.kubeconfig.read_text())
    config["users"] = [{"name": one["name"], "user": {"token": token}} for one in config["users"]]
    for one in config["contexts"]:
        one["context"]["namespace"] = "charted"
    return config


def renamed(model: Manifest) -> Manifest:
    return {**model, "spec": {**model["spec"], "pools": [{"name": "other", "accelerator": "cpu"}]}}


async def there(api: KubeApi, kind: Resource, name: str) -> bool:
    try:
        await api.get(kind, "charted", name)
    except NotFound:
        return False
    return True


async def told(api: KubeApi) -> bool:
    """A status and an event were written."""
    status = (await api.get(MODEL_DEPLOYMENTS, "charted", "qwen")).get("status") or {}
    return bool(status.get("conditions")) and bool((await api.list(EVENTS, "charted")).items)


async def only(api: KubeApi, labels: str, name: str) -> bool:
    listed = (await api.list(DEPLOYMENTS, "charted", labels)).items
    return [one["metadata"]["name"] for one in listed] == [name]

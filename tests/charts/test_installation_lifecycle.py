"""The life of an installation on a real API server without pods: generated values and served models
stay.
"""

import asyncio
import base64
from pathlib import Path

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import NotFound
from fairlead.kube.resources import DEPLOYMENTS, MODEL_DEPLOYMENTS, SECRETS, SERVICES
from fairlead.runtime.clock import SystemClock
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.helm import CHART_FOLDER, HelmRelease
from fairlead_testing.waiting import wait_until_async

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
SPACE = "installed"
MODEL = {
    "apiVersion": MODEL_DEPLOYMENTS.api_version,
    "kind": "ModelDeployment",
    "metadata": {"name": "qwen", "namespace": SPACE},
    "spec": {
        "model": {"uri": "hf://Qwen/Qwen3-8B"},
        "engine": {"type": "Sim"},
        "pools": [{"name": "main", "acceleratorClassName": "cpu"}],
    },
}
ENGINES = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "qwen-main", "namespace": SPACE, "labels": {"app.kubernetes.io/managed-by": "fairlead"}},
    "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "engine", "image": "example.com/sim:1"}]},
        },
    },
}
"""The objects that the operator would have created for it."""


@pytest.fixture
def helm(api_server: ApiServer, program: Path, tmp_path: Path) -> HelmRelease:
    return HelmRelease(program, api_server.kubeconfig, SPACE, tmp_path)


async def drawn(api: KubeApi) -> dict[str, dict[str, str]]:
    found = {}
    for name in ("fairlead-gateway", "fairlead-keys", "fairlead-redis"):
        data = (await api.get(SECRETS, SPACE, name))["data"]
        found[name] = {key: base64.b64decode(value).decode() for key, value in data.items()}
    return found


def test_upgrade_keeps_generated_values_and_uninstall_keeps_models(api_server: ApiServer, helm: HelmRelease) -> None:
    async def main() -> None:
        async with KubeApi(api_server.config(), SystemClock(), lambda: 0.5) as api:
            said = await asyncio.to_thread(helm, "install", str(CHART_FOLDER), "--create-namespace")
            assert "get secret fairlead-keys -o jsonpath='{.data.first-key}'" in said
            await wait_until_async(lambda: api.has_resource(MODEL_DEPLOYMENTS))
            served = [await api.apply(MODEL, "kubectl"), await api.apply(ENGINES, "fairlead")]
            first = await drawn(api)
            assert all(value for data in first.values() for value in data.values())

            keys = {"data": {"keys.yaml": base64.b64encode(b"keys: []\n").decode()}}
            await api.patch_merge(SECRETS, SPACE, "fairlead-keys", keys, "somebody")
            await asyncio.to_thread(
                helm, "upgrade", str(CHART_FOLDER), "--set=gateway.replicas=3", "--set=redis.image.tag=next"
            )
            assert (await api.get(DEPLOYMENTS, SPACE, "fairlead-gateway"))["spec"]["replicas"] == 3
            expected = {**first, "fairlead-keys": {**first["fairlead-keys"], "keys.yaml": "keys: []\n"}}
            assert await drawn(api) == expected

            await asyncio.to_thread(helm, "uninstall")
            assert await api.get(MODEL_DEPLOYMENTS, SPACE, "qwen") == served[0]
            assert await api.get(DEPLOYMENTS, SPACE, "qwen-main") == served[1]
            for kind, name in ((DEPLOYMENTS, "fairlead-operator"), (SERVICES, "fairlead-gateway")):
                with pytest.raises(NotFound):
                    await api.get(kind, SPACE, name)

    asyncio.run(main())

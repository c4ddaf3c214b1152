"""The life of an installation on a real API server without pods: generated values and served models
stay.
"""

import asyncio
import base64
import shutil
from pathlib import Path

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import NotFound
from fairlead.kube.resources import DEPLOYMENTS, MODEL_DEPLOYMENTS, SECRETS, SERVICES
from fairlead.runtime.clock import SystemClock
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.helm import CHART_FOLDER, HelmRelease
from fairlead_testing.kube.manifests import engines_of, simulated_model
from fairlead_testing.waiting import wait_until

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
SPACE = "installed"
MODEL = simulated_model("qwen", SPACE)
ENGINES = engines_of("qwen-main", SPACE)
"""The objects that the operator would have created for it."""


@pytest.fixture
def helm(api_server: ApiServer, program: Path, tmp_path: Path) -> HelmRelease:
    return HelmRelease(program, api_server.kubeconfig, SPACE, tmp_path)


async def drawn(api: KubeApi) -> dict[str, dict[str, str]]:
    return {name: await drawn_secret(api, name) for name in ("fairlead-gateway", "fairlead-keys", "fairlead-redis")}


async def drawn_secret(api: KubeApi, name: str) -> dict[str, str]:
    data = (await api.get(SECRETS, SPACE, name))["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


async def edit_keys(api: KubeApi, text: str) -> None:
    keys = {"data": {"keys.yaml": base64.b64encode(text.encode()).decode()}}
    await api.patch_merge(SECRETS, SPACE, "fairlead-keys", keys, "somebody")


async def test_upgrade_and_rollback_keep_generated_values_and_uninstall_keeps_models(
    api_server: ApiServer, helm: HelmRelease
) -> None:
    async with KubeApi(api_server.config(), SystemClock(), lambda: 0.5) as api:
        notes = await asyncio.to_thread(helm, "install", str(CHART_FOLDER), "--create-namespace")
        assert "get secret fairlead-keys -o jsonpath='{.data.first-key}'" in notes
        await wait_until(lambda: api.has_resource(MODEL_DEPLOYMENTS))
        served = [await api.apply(MODEL, "kubectl"), await api.apply(ENGINES, "fairlead")]
        first = await drawn(api)
        assert all(value for data in first.values() for value in data.values())

        await edit_keys(api, "keys: []\n")
        await asyncio.to_thread(
            helm, "upgrade", str(CHART_FOLDER), "--set=gateway.replicas=3", "--set=redis.image.tag=next"
        )
        assert (await api.get(DEPLOYMENTS, SPACE, "fairlead-gateway"))["spec"]["replicas"] == 3
        expected = {**first, "fairlead-keys": {**first["fairlead-keys"], "keys.yaml": "keys: []\n"}}
        assert await drawn(api) == expected

        await edit_keys(api, "keys: [{name: team-b, digest: bb}]\n")
        await asyncio.to_thread(helm, "rollback", "1")
        assert (await api.get(DEPLOYMENTS, SPACE, "fairlead-gateway"))["spec"]["replicas"] == 2
        expected["fairlead-keys"]["keys.yaml"] = "keys: [{name: team-b, digest: bb}]\n"
        assert await drawn(api) == expected, "keys that were issued and revoked since are kept"

        await asyncio.to_thread(helm, "uninstall")
        assert (await drawn_secret(api, "fairlead-keys")) == expected["fairlead-keys"]
        assert await api.get(MODEL_DEPLOYMENTS, SPACE, "qwen") == served[0]
        assert await api.get(DEPLOYMENTS, SPACE, "qwen-main") == served[1]
        for kind, name in ((DEPLOYMENTS, "fairlead-operator"), (SERVICES, "fairlead-gateway")):
            with pytest.raises(NotFound):
                await api.get(kind, SPACE, name)


async def test_keys_of_a_release_before_are_kept_and_leave_it(
    api_server: ApiServer, helm: HelmRelease, tmp_path: Path
) -> None:
    """An earlier chart had the Secret in its release, where each rollback would apply it."""
    earlier = tmp_path / "earlier"
    shutil.copytree(CHART_FOLDER, earlier)
    template = earlier / "templates" / "gateway" / "config.yaml"
    text = template.read_text()
    for line in ("    helm.sh/resource-policy: keep\n", "    helm.sh/hook: pre-install,pre-upgrade\n"):
        assert line in text
        text = text.replace(line, "    example.com/earlier: yes-it-is\n" if "policy" in line else "")
    template.write_text(text)
    async with KubeApi(api_server.config(), SystemClock(), lambda: 0.5) as api:
        await asyncio.to_thread(helm, "install", str(earlier), "--create-namespace")
        first = await drawn_secret(api, "fairlead-keys")
        await asyncio.to_thread(helm, "upgrade", str(CHART_FOLDER))
        assert await drawn_secret(api, "fairlead-keys") == first
        await edit_keys(api, "keys: [{name: team-b, digest: bb}]\n")
        await asyncio.to_thread(helm, "upgrade", str(CHART_FOLDER), "--set=gateway.replicas=3")
        await asyncio.to_thread(helm, "rollback", "2")
        expected = {**first, "keys.yaml": "keys: [{name: team-b, digest: bb}]\n"}
        assert await drawn_secret(api, "fairlead-keys") == expected
        await asyncio.to_thread(helm, "uninstall")

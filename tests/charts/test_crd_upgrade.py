"""The upgrade from a release with older CRDs, by helm and by the command of the README.

The CRDs in `older` are those of an early state of this repository: no status, no scale subresource,
half of the fields. The API server is one of its own.
"""

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead.api.kinds import served_kinds
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Invalid, KubeError
from fairlead.kube.resources import ACCELERATOR_CLASSES, DEPLOYMENTS, MODEL_DEPLOYMENTS, Manifest, Resource
from fairlead.runtime.clock import SystemClock
from fairlead_testing.kube.api_server import ApiServer, api_server_for_test
from fairlead_testing.kube.helm import CHART_FOLDER, HelmRelease, kubectl
from fairlead_testing.kube.manifests import engines_of, manifest
from fairlead_testing.waiting import wait_until
from fairlead_testing.yaml_documents import load_document

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
OLDER = Path(__file__).parent / "older"
SPACE = "grown"
PROFILE = {"preset": "a100-qwen7b", "stepSeconds": "2.5m", "kvTokens": 200_000}
ACCELERATOR = manifest(ACCELERATOR_CLASSES, "workstation", spec={"profile": PROFILE})
SPEC: Manifest = {
    "model": {"uri": "hf://Qwen/Qwen2.5-7B-Instruct"},
    "pools": [{"name": "main", "acceleratorClassName": "workstation", "minReplicas": 3}],
    "slo": {"target": "99%", "ttft": "800ms"},
    "routing": {"preset": "session"},
}
MODEL = manifest(MODEL_DEPLOYMENTS, "agent", SPACE, spec=SPEC)
ENGINES = engines_of("agent-main", SPACE)
OBJECTS: tuple[tuple[Resource, str | None, str], ...] = (
    (ACCELERATOR_CLASSES, None, "workstation"),
    (MODEL_DEPLOYMENTS, SPACE, "agent"),
    (DEPLOYMENTS, SPACE, "agent-main"),
)
NEWER = MODEL | {"spec": SPEC | {"model": SPEC["model"] | {"revision": "main"}}}
WRONG = MODEL | {"spec": SPEC | {"pools": [{"name": "main"}]}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    """Yields a server of its own, because CRDs belong to a whole cluster."""
    with api_server_for_test(tmp_path / "run") as own_server:
        yield own_server


def before(folder: Path) -> Path:
    """The chart as a release with the older CRDs would have it."""
    shutil.copytree(CHART_FOLDER, folder)
    for path in OLDER.glob("*.yaml"):
        shutil.copyfile(path, folder / "crds" / path.name)
    return folder


async def uids(api: KubeApi) -> list[str]:
    return [(await api.get(kind, place, name))["metadata"]["uid"] for kind, place, name in OBJECTS]


def command() -> list[str]:
    """The one that the README shows."""
    (line,) = set(
        re.findall(r"^ *kubectl (apply --server-side .*)$", (CHART_FOLDER / "README.md").read_text(), re.MULTILINE)
    )
    words = line.split()
    assert words[-2:] == ["-f", "charts/fairlead/crds"]
    return [*words[:-1], str(CHART_FOLDER / "crds")]


async def test_objects_survive_the_upgrade(server: ApiServer, program: Path, tmp_path: Path) -> None:
    helm, former = HelmRelease(program, server.kubeconfig, SPACE, tmp_path / "helm"), before(tmp_path / "former")
    async with KubeApi(server.config(), SystemClock(), lambda: 0.5) as api:
        await asyncio.to_thread(helm, "install", str(former), "--create-namespace")
        await wait_until(lambda: api.has_resource(MODEL_DEPLOYMENTS))
        for document in (ACCELERATOR, MODEL, ENGINES):
            await api.apply(document, "kubectl")
        known = await uids(api)
        await asyncio.to_thread(upgrade_as_documented, helm, tmp_path / "values.yaml")

        output = await asyncio.to_thread(kubectl, server, *command())
        assert output.count("serverside-applied") == len(served_kinds())
        await wait_until(lambda: is_refused(api, WRONG))
        await api.apply(NEWER, "kubectl")
        assert await uids(api) == known
        model = await api.get(MODEL_DEPLOYMENTS, SPACE, "agent")
        assert model["spec"]["slo"] == {"target": "99%", "ttft": "800ms"}
        assert model["spec"]["model"] == NEWER["spec"]["model"]

        status = {"conditions": [], "observedGeneration": model["metadata"]["generation"]}
        assert (await api.apply_status({**MODEL, "status": status}, "fairlead-operator"))["status"]
        with pytest.raises(Invalid, match="a pool needs an accelerator class"):
            await api.apply(WRONG, "kubectl")

        again = await asyncio.to_thread(kubectl, server, *command(), "-o", "yaml")
        first = await asyncio.to_thread(kubectl, server, *command(), "-o", "yaml")
        assert versions(again) == versions(first), "a second time changes nothing"


def upgrade_as_documented(helm: HelmRelease, values: Path) -> None:
    """Saves the values by the command that the pages show, then upgrades with that file."""
    docs = CHART_FOLDER.parents[1] / "docs"
    pages = [page.read_text(encoding="utf-8") for page in docs.rglob("*.md")]
    (line,) = {line for page in pages for line in re.findall(r"helm (get values .*) > \S*values\.yaml$", page, re.M)}
    words = line.replace("--namespace fairlead", f"--namespace {helm.namespace}").split()
    command = [str(helm.program), *words, f"--kubeconfig={helm.kubeconfig}"]
    values.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    helm("upgrade", str(CHART_FOLDER), "--reset-then-reuse-values", f"--values={values}")


async def is_refused(api: KubeApi, wrong: Manifest) -> bool:
    """Returns True once the server refuses an invalid object; a new schema takes a moment."""
    probe = {**wrong, "metadata": {**wrong["metadata"], "name": "probe"}}
    try:
        await api.apply(probe, "kubectl", dry_run=True)
    except KubeError:
        return True
    return False


def versions(output: str) -> list[str]:
    """The resource versions in a list that kubectl printed."""
    return [listed["metadata"]["resourceVersion"] for listed in load_document(output)["items"]]

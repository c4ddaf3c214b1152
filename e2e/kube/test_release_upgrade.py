"""The upgrade from the latest release to the next minor one, and the way back, as the page on
upgrades describes them, under traffic.

Before the first tag, the last commit is the earlier release. The later one is the working tree,
with the version raised.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.addons import oci_registry
from e2e.kube.cluster_access.kubectl import Kubectl, eventually
from e2e.kube.workloads import client_pods
from e2e.kube.workloads.client_pods import ClientPod, GatewayRequest, StreamSession
from e2e.kube.workloads.helm_release import KINDS, VALUES, HelmRelease, PublishedRelease, publish_build
from e2e.kube.workloads.manifests import model, paced_engine, resource
from e2e.kube.workloads.model_deployments import DeployedModel
from e2e.resource_locks import INSTALLATION_LOCK, file_lock
from fairlead_testing.pages import parse_page, run_page
from fairlead_testing.reports import ReportLine

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "upgrade.md"
PULL = "helm pull oci://registry.example.com/fairlead/charts/fairlead --version NEW"
WAY_BACK = "## Roll back\n"
VERSION = re.compile(r'^(__version__|version) = "([^"]+)"$', re.MULTILINE)
RATE, TOKENS = 2.0, 60
PAGE_SECONDS = 400

pytestmark = [pytest.mark.lane("release"), pytest.mark.extended]


@dataclass(frozen=True, slots=True)
class Release:
    """A published release, and the sources with its command line."""

    published: PublishedRelease
    sources: Path

    @property
    def path(self) -> Path:
        return self.sources / ".venv" / "bin"

    def fairlead(self, here: Kubectl, *words: str) -> str:
        command = [str(self.path / "fairlead"), *words]
        return subprocess.run(command, env=dict(here.environ), check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Release, Release]]:
    """The latest release and the next minor one, in a registry of this machine."""
    folder = tmp_path_factory.mktemp("releases")
    sources = folder / "earlier", folder / "later"
    copy_latest_release(sources[0])
    copy_next_minor(sources[1], version_of(sources[0]))
    with oci_registry(folder / "registry") as address:
        earlier, later = (
            Release(publish_build(root, root / "dist", f"{address}/fairlead", compiled=False), root) for root in sources
        )
        yield earlier, later


@pytest.fixture
def released(kubectl: Kubectl, releases: tuple[Release, Release]) -> Iterator[HelmRelease]:
    """The earlier release, installed. A node of two processors has no room for a third gateway with
    the default request."""
    with file_lock(INSTALLATION_LOCK, alone=True):
        release = HelmRelease(kubectl, releases[0].published.helm_words, defaults=VALUES)
        release.remove()
        release.install()
        try:
            yield release
        finally:
            release.remove()


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def version_of(sources: Path) -> str:
    """Returns the version that sources have."""
    found = VERSION.search((sources / "fairlead" / "__init__.py").read_text())
    assert found is not None
    return found[2]


def copy_latest_release(folder: Path) -> None:
    """Copies the newest tagged release of the present history, or the last commit without one."""
    git(ROOT, "clone", "-q", "--shared", str(ROOT), str(folder))
    tags = git(folder, "tag", "--merged", "HEAD", "--sort=-version:refname", "--list", "v*").split()
    git(folder, "checkout", "-q", tags[0] if tags else "HEAD")


def copy_next_minor(folder: Path, earlier: str) -> None:
    """Copies the working tree, and raises its version to the minor one after ``earlier``."""
    for name in git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    major, minor, _ = earlier.split(".")
    for file in (folder / "fairlead" / "__init__.py", folder / "pyproject.toml"):
        file.write_text(VERSION.sub(rf'\1 = "{major}.{int(minor) + 1}.0"', file.read_text(), count=1))
    git(folder, "init", "-q")


def run_commands(text: str, folder: Path, release: Release, environ: Mapping[str, str]) -> None:
    """Runs the commands of a part of the page, with the command line of a release."""
    page = folder / PAGE.name
    page.write_text(text)
    path = f"{release.path}:{environ['PATH']}"
    run_page(parse_page(page), folder, {**environ, "PATH": path, "XDG_RUNTIME_DIR": str(folder)}, PAGE_SECONDS)


def images(release: HelmRelease) -> set[str]:
    """Returns the images of an installation's pods, and the version of its Deployments."""
    pods = release.here.get("pods")["items"]
    deployments = release.here.get("deployments")["items"]
    return {container["image"] for pod in pods for container in pod["spec"]["containers"]} | {
        one["metadata"]["labels"]["app.kubernetes.io/version"] for one in deployments
    }


def state_of(release: HelmRelease, found: DeployedModel) -> dict[str, Any]:
    """Returns what an upgrade leaves as it is, once the model is settled: objects, engines, keys
    and definitions."""
    here, pods = found.here, found.wait_until_settled(pods=2)
    objects = here.get(",".join(KINDS))["items"]
    children = here.get("deployments", "-l", f"fairlead.io/model={found.name}")["items"]
    definitions = {name: here.get("crd", f"{name}.serving.fairlead.io")["status"] for name in KINDS}
    return {
        "objects": {one["metadata"]["uid"]: (one["metadata"]["generation"], one["spec"]) for one in objects},
        "children": {one["metadata"]["uid"]: one["metadata"]["generation"] for one in children},
        "restarts": {
            uid: [container["restartCount"] for container in pod["status"]["containerStatuses"]]
            for uid, pod in pods.items()
        },
        "keys": release.here.get("secret", "fairlead-keys")["data"],
        "definitions": {
            name: (status["storedVersions"], {one["type"]: one["status"] for one in status["conditions"]})
            for name, status in definitions.items()
        },
    }


@pytest.mark.timeout(600, func_only=True)
def test_a_minor_upgrade_and_its_rollback_keep_everything(
    here: Kubectl, released: HelmRelease, releases: tuple[Release, Release], tmp_path: Path
) -> None:
    earlier, later = releases
    here.apply(paced_engine(), model("busy", replicas=2, price={"input": "1000", "output": "2000"}))
    client, found = ClientPod(here, released).start(), DeployedModel(here, "busy")
    client.first_token("busy")
    keys = {}
    for kind, dollars in (("spent", "0.01"), ("rich", "1000000")):
        tenant = f"{here.namespace}-{kind}"
        here.apply(resource("ModelTenant", tenant, models=[f"{here.namespace}/busy"], budget={"usd": dollars}))
        keys[kind] = earlier.fairlead(here, "keys", "create", tenant, "ci").strip()
    client.key = keys["rich"]
    client.first_token("busy")

    def is_spent() -> bool:
        """Whether the small budget admits nothing."""
        body = {"model": "busy", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 8}
        answers = client.send_each([GatewayRequest("/v1/chat/completions", body)] * 4, keys["spent"])
        return {answer.model_or_code() for answer in answers} == {"insufficient_quota"}

    eventually("the budget is used up", is_spent)
    before = state_of(released, found)
    there, back = PAGE.read_text().split(WAY_BACK)
    assert PULL in there
    there = there.replace(PULL, f"helm pull {' '.join(later.published.helm_words)}")
    with StreamSession(client, "busy", rate=RATE, tokens=TOKENS) as streams:
        for step, commands, release in (("upgrade", there, later), ("rollback", back, earlier)):
            with streams.step(step):
                gateways = set(released.pods("gateway"))
                run_commands(commands, tmp_path, release, here.environ)
                released.wait_until_replaced("gateway", gateways)
            names = {f"{release.published.prefix}/{name}@{digest}" for name, digest in release.published.images.items()}
            assert images(released) <= names | {release.published.version}
            assert is_spent()
            assert state_of(released, found) == before
    lost, outcomes = streams.attributed_failures(), streams.end["outcomes"]
    bar = ReportLine("every stream is whole over upgrade and rollback", outcomes, set(outcomes) == {"complete"})
    client_pods.record_result("upgrade", [bar], into="e2e-release", steps=streams.steps, failures=lost, **streams.end)
    assert lost == []

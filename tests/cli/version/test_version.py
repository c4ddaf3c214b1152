"""``fairlead version``: the client always, the server where one answers."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead import __version__
from fairlead.api.crd import crd_manifest
from fairlead.api.kinds import served_kinds
from fairlead.kube.resources import CUSTOM_RESOURCE_DEFINITIONS, DEPLOYMENTS
from fairlead_cli.output import OutputFormat
from fairlead_cli.target import InstallationOptions
from fairlead_cli.version.command import version
from fairlead_testing.kube.fake_server import FakeApiServer, fake_api_server
from fairlead_testing.yaml_documents import load_documents

GOLDEN = Path(__file__).parents[2] / "charts" / "golden" / "defaults.yaml"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a kubeconfig nor a pod's environment is there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)


def kubeconfig(folder: Path, server: str) -> Path:
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {}}],
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(document))
    return path


def install(fake: FakeApiServer) -> None:
    """The chart's Deployments, and the definitions of this release."""
    fake.objects["/version"] = {"gitVersion": "v1.36.3"}
    for kind in served_kinds():
        manifest = crd_manifest(kind)
        fake.put(CUSTOM_RESOURCE_DEFINITIONS, None, manifest["metadata"]["name"], spec=manifest["spec"])
    for document in load_documents(GOLDEN.read_text()):
        if document and document["kind"] == "Deployment":
            fake.put(
                DEPLOYMENTS,
                "fairlead",
                document["metadata"]["name"],
                spec=document["spec"],
                status={"readyReplicas": 1},
            )
            fake.objects[DEPLOYMENTS.path("fairlead", document["metadata"]["name"])]["metadata"]["labels"] = document[
                "metadata"
            ]["labels"]


def versions_of(
    fill: Any, folder: Path, capsys: pytest.CaptureFixture[str], output: OutputFormat = "json"
) -> tuple[int, str]:
    """Returns exit code and output of the command on an API server that ``fill`` has filled."""

    async def main() -> int:
        async with fake_api_server() as fake:
            fill(fake)
            options = InstallationOptions(kubeconfig=kubeconfig(folder, fake.config().server))
            return await asyncio.to_thread(version, cluster=options, output=output)

    code = asyncio.run(main())
    return code, capsys.readouterr().out


def test_without_a_kubeconfig_only_the_client_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert version(output="json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["client"]["version"] == __version__
    assert shown["server"] is None
    assert version() == 0
    assert capsys.readouterr().out.startswith(f"client      {__version__}  (Python 3.")


def test_the_server_is_what_is_deployed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = versions_of(install, tmp_path, capsys)
    server: Mapping[str, Any] = json.loads(text)["server"]
    assert (code, server["kubernetes"]) == (0, "v1.36.3")
    by_name = {component["component"]: component for component in server["components"]}
    assert {"operator", "gateway", "autoscaler"} <= by_name.keys()
    operator = by_name["operator"]
    assert (operator["version"], operator["ready"], operator["namespace"]) == (__version__, "1/2", "fairlead")
    assert operator["image"].endswith(f"/operator:{__version__}")
    assert {
        (definition["name"], tuple(definition["served"]), definition["stored"]) for definition in server["definitions"]
    } == {(f"{kind.plural}.serving.fairlead.io", ("v1alpha1",), "v1alpha1") for kind in served_kinds()}


def test_the_table_has_a_line_for_each_component_and_definition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, text = versions_of(install, tmp_path, capsys, "table")
    lines = text.splitlines()
    assert lines[1] == "kubernetes  v1.36.3"
    assert any(line.split()[:3] == ["gateway", __version__, "1/2"] for line in lines)
    assert any(line.split() == ["modeldeployments.serving.fairlead.io", "v1alpha1", "v1alpha1"] for line in lines)


def test_a_cluster_without_fairlead_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fill(fake: FakeApiServer) -> None:
        fake.objects["/version"] = {"gitVersion": "v1.36.3"}

    code, text = versions_of(fill, tmp_path, capsys, "table")
    assert code == 0
    assert "server      no installation was found" in text
    assert "not installed" in text


def test_an_unreachable_cluster_leaves_the_client(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = InstallationOptions(kubeconfig=kubeconfig(tmp_path, "http://127.0.0.1:9"))
    assert version(cluster=options, output="json") == 3
    shown = json.loads(capsys.readouterr().out)
    assert shown["client"]["version"] == __version__
    assert "does not answer" in shown["problem"]
    assert version(client=True, cluster=options, output="json") == 0

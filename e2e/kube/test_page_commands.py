"""Every command of guides that need a cluster, as written and in its order. Every manifest of the
pages is also sent to the API server, which checks what no schema file says."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from e2e.kube.cluster_access.kubectl import Kubectl
from e2e.kube.workloads.helm_release import VALUES, HelmRelease
from fairlead_testing.pages import CommandPage, parse_page, run_page
from fairlead_testing.yaml_documents import load_document, load_documents

ROOT = Path(__file__).parents[2]
PAGES = [parse_page(path) for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]]
ON_CLUSTER = [page for page in PAGES if page.setting == "cluster"]
ON_EMPTY_CLUSTER = [page for page in PAGES if page.setting == "installation"]
KNOWN_GROUPS = ("v1", "apps/v1", "batch/v1", "serving.fairlead.io/v1alpha1")
"""API versions of manifests that any cluster with Fairlead accepts. Others are of other systems."""
TIMEOUT_SECONDS = 540

pytestmark = pytest.mark.extended


def _environment(here: Kubectl, folder: Path) -> Mapping[str, str]:
    """Returns the variables of a reader's shell.

    Its kubeconfig selects the namespace of the test, ``kubectl fairlead`` is on PATH, and helm
    requests as much as a small node has.
    """
    tools = folder / "bin"
    tools.mkdir()
    small = folder / "small.yaml"
    small.write_text(json.dumps(VALUES))
    helm = shutil.which("helm", path=here.environ["PATH"])
    wrapper = tools / "helm"
    wrapper.write_text(
        f'#!/bin/sh\ncase "$1" in install|upgrade) exec {helm} "$@" --values={small} ;; *) exec {helm} "$@" ;; esac\n'
    )
    wrapper.chmod(0o755)
    kubeconfig = folder / "kubeconfig"
    shutil.copy(here.environ["KUBECONFIG"], kubeconfig)
    environment = {
        **here.environ,
        "PATH": f"{tools}:{Path(sys.executable).parent}:{here.environ['PATH']}",
        "KUBECONFIG": str(kubeconfig),
        "XDG_RUNTIME_DIR": str(folder),
        "PYTHONUNBUFFERED": "1",
    }
    config = load_document(kubeconfig.read_text())
    for context in config["contexts"]:
        context["context"]["namespace"] = here.namespace
    kubeconfig.write_text(yaml.safe_dump(config))
    return environment


def _folder(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    for name in ("examples", "charts"):
        (work / name).symlink_to(ROOT / name)
    return work


def _namespaces(here: Kubectl) -> set[str]:
    names = {manifest["metadata"]["name"] for manifest in here.get("namespaces")["items"]}
    return {name for name in names if not name.startswith("e2e-")}


def _name(page: CommandPage) -> str:
    return str(page.path.relative_to(ROOT))


@pytest.mark.lane("models", position=70)
@pytest.mark.timeout(TIMEOUT_SECONDS + 60, func_only=True)
@pytest.mark.parametrize("page", ON_CLUSTER, ids=_name)
def test_the_commands_of_a_page_work_on_an_installation(
    page: CommandPage, here: Kubectl, installed: HelmRelease, tmp_path: Path
) -> None:
    run_page(page, _folder(tmp_path), _environment(here, tmp_path), TIMEOUT_SECONDS)


@pytest.mark.lane("changes", position=40)
@pytest.mark.timeout(TIMEOUT_SECONDS + 60, func_only=True)
@pytest.mark.parametrize("page", ON_EMPTY_CLUSTER, ids=_name)
def test_the_commands_of_a_page_work_on_an_empty_cluster(
    page: CommandPage, here: Kubectl, empty: HelmRelease, tmp_path: Path
) -> None:
    before = _namespaces(here)
    try:
        run_page(page, _folder(tmp_path), _environment(here, tmp_path), TIMEOUT_SECONDS)
    except BaseException:
        empty.here.dump(ROOT / "out" / "e2e" / "pages" / page.path.stem)
        raise
    finally:
        here.delete_models()
        empty.remove()
        for name in _namespaces(here) - before:  # for a run that follows on this cluster
            here.run("delete", "namespace", name, "--timeout=60s")


@pytest.mark.lane("models", position=71)
def test_the_api_server_accepts_every_manifest_of_the_pages(here: Kubectl, installed: HelmRelease) -> None:
    refused = []
    for page in PAGES:
        for block in page.blocks:
            if block.language != "yaml" or block.skipped or (block.file and "values" in block.file):
                continue
            documents = [document for document in load_documents(block.text) if isinstance(document, dict)]
            for document in documents:
                if document.get("apiVersion") not in KNOWN_GROUPS:
                    continue
                document.get("metadata", {}).pop("namespace", None)
                try:
                    here.run("apply", "--dry-run=server", "-f", "-", given=json.dumps(document, default=str))
                except AssertionError as error:
                    refused.append(f"{_name(page)}:{block.line}: {error}")
    assert refused == []

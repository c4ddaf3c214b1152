"""Rendered objects of every kind of model, as golden files.

`python scripts/golden_files.py` writes the files; people review them.
"""

from pathlib import Path

import pytest

from fairlead.kube.resources import Manifest
from fairlead_operator.render import CURRENT_VERSION, ExistingWorkload, RenderPin, render_model
from fairlead_operator.render.template_versions import supported_versions
from fairlead_testing.kube.render_cases import default_context, golden_text, read_case
from fairlead_testing.yaml_documents import load_documents

FOLDER = Path(__file__).parent
CASES = sorted(path.name for path in (FOLDER / "cases").glob("*.yaml"))


@pytest.mark.parametrize("case", CASES)
def test_model_renders_its_golden_file(case: str) -> None:
    model, classes = read_case(FOLDER / "cases" / case)
    rendered = render_model(model, classes, default_context())
    assert rendered.problems == ()
    golden = (FOLDER / "golden" / f"v{CURRENT_VERSION}" / case).read_text(encoding="utf-8")
    assert golden_text(rendered.manifests) == golden


@pytest.mark.parametrize("version", sorted(supported_versions()))
@pytest.mark.parametrize("case", CASES)
def test_rendering_of_older_releases_is_unchanged(case: str, version: int) -> None:
    model, classes = read_case(FOLDER / "cases" / case)
    facts = default_context()
    first = render_model(model, classes, facts)
    image = facts.installation.images.get(model.spec.engine.type) if model.spec.engine.image is None else None
    has_downloader = model.spec.adapters is not None and model.spec.adapters.download is not None
    downloader = facts.installation.downloader_image if has_downloader else None
    pins = {
        manifest["metadata"]["labels"]["fairlead.io/pool"]: ExistingWorkload(
            manifest["metadata"]["name"],
            RenderPin(
                manifest["metadata"]["annotations"]["fairlead.io/revision"],
                version,
                image,
                facts.installation.pull_secrets,
                downloader_image=downloader,
            ),
        )
        for manifest in first.manifests
        if manifest["kind"] in ("Deployment", "LeaderWorkerSet")
    }
    again = render_model(model, classes, default_context(workloads=pins))
    golden = FOLDER / "golden" / f"v{version}" / case
    if golden.exists():  # a case that is newer than the version has none
        was = [document for document in load_documents(golden.read_text(encoding="utf-8")) if document is not None]
        assert [pods(manifest) for manifest in again.manifests] == [pods(manifest) for manifest in was]


def pods(manifest: Manifest) -> list[Manifest]:
    """The pod templates of a manifest: what engines in the field run with."""
    spec = manifest.get("spec", {})
    group = spec.get("leaderWorkerTemplate", {})
    templates = (spec.get("template"), group.get("leaderTemplate"), group.get("workerTemplate"))
    return [template for template in templates if template is not None]


def test_no_golden_file_without_a_case() -> None:
    for version in supported_versions():
        assert {path.name for path in (FOLDER / "golden" / f"v{version}").glob("*.yaml")} <= set(CASES)

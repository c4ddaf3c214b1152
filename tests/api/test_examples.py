"""The examples are right, numbered without a gap, listed, and the bundled one is one of them."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from fairlead.manifests import load

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_is_a_manifest_that_can_run_here(path: Path) -> None:
    manifests = load([path])
    assert 1 <= sum(pool.replicas.min for model in manifests.models for pool in model.spec.pools) <= 8
    for model in manifests.models:
        for pool in model.spec.pools:
            assert manifests.profile(pool) is not None


def test_examples_are_numbered_and_listed() -> None:
    assert [path.name[:2] for path in FILES] == [f"{number:02}" for number in range(1, len(FILES) + 1)]
    listed = re.findall(r"^\| \[([^]]+)\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert listed == [path.name for path in FILES]


def test_the_bundled_example_is_the_second_one() -> None:
    bundled = files("fairlead").joinpath("examples/eight-engines.yaml").read_text()
    assert bundled == (EXAMPLES / "02-eight-engines.yaml").read_text()


def test_the_first_example_is_the_smallest_manifest_there_is() -> None:
    (model,) = load([FILES[0]]).models
    assert model.model_dump(by_alias=True, exclude_unset=True) == {
        "apiVersion": "serving.fairlead.io/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "qwen3-8b"},
        "spec": {"model": {"source": "hf://Qwen/Qwen3-8B"}, "pools": [{"accelerator": "nvidia-l4"}]},
    }

"""Both ways of making an image say the same, and the locks of the images are parts of the lock."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.cluster.artifacts import image_layers, image_set

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("component", image_set.COMPONENTS)
def test_the_dockerfile_says_what_the_writer_does(component: str) -> None:
    text = (ROOT / component / "Dockerfile").read_text().replace("\\\n", " ")
    final = text.rpartition("\nFROM ")[2]
    environment = dict(
        pair.split("=", 1) for line in re.findall(r"^ENV (.*)$", final, re.MULTILINE) for pair in line.split()
    )
    assert environment == image_set.ENVIRONMENT
    assert re.findall(r"^USER (.*)$", final, re.MULTILINE) == [image_set.USER]
    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", final, re.MULTILINE)[0])
    assert tuple(entry) == image_set.COMPONENTS[component]
    assert f"requirements/images/{component}.txt" in text
    assert ("scripts/compile.py" in text) == (component in image_set.COMPILED)
    assert f"serving.fairlead.io/{component}:{image_set.version()}" in text


@pytest.mark.parametrize("component", image_set.COMPONENTS)
def test_an_images_lock_is_part_of_the_lock_with_its_hashes(component: str) -> None:
    everything = (ROOT / "requirements" / "dev.txt").read_text()
    own = ROOT / "requirements" / "images" / f"{component}.txt"
    assert (
        image_layers.locked_requirements(own).items()
        <= image_layers.locked_requirements(ROOT / "requirements" / "dev.txt").items()
    )
    for line in own.read_text().splitlines()[1:]:
        assert line in everything


def test_no_image_carries_what_only_development_needs() -> None:
    for component in image_set.COMPONENTS:
        names = image_layers.locked_requirements(ROOT / "requirements" / "images" / f"{component}.txt").keys()
        assert names.isdisjoint({"pytest", "mypy", "ruff", "hypothesis", "matplotlib", "openai", "kubernetes"})
        assert {"pydantic", "msgspec"} <= names


def test_a_layer_is_made_once_for_its_content(tmp_path: Path) -> None:
    store, made = image_set.LayerStore(tmp_path), []

    def fill(root: Path) -> None:
        made.append(root)
        (root / "file").write_text("text")

    first = store.layer("one", "a", fill)
    assert store.layer("one", "a", fill) == first
    assert len(made) == 1
    store.layer("one", "b", fill)
    assert len(made) == 2


STARTED = {
    "gateway": (
        "fairlead_gateway.__main__",
        "fairlead_gateway.supervisor.kv_index.index_source",
        "fairlead.fleet.kubernetes.options",
    ),
    "kvstore": (
        "fairlead_kvstore.indexer.cli",
        "fairlead_kvstore.indexer.service",
        "fairlead.fleet.kubernetes.options",
    ),
}
"""Component → modules that together load all it needs, those too that it loads only when it gets
there."""


_WITHOUT = """
import importlib, sys
away, wanted = set(sys.argv[1].split(",")), sys.argv[2].split(",")

class Away:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in away:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)

sys.meta_path.insert(0, Away())
for name in wanted:
    importlib.import_module(name)
"""


@pytest.mark.parametrize("component", STARTED)
def test_what_a_component_loads_is_in_its_image(component: str) -> None:
    """The component starts with nothing but its locked requirements."""
    lock = ROOT / "requirements" / "images" / f"{component}.txt"
    locked = {_plain(name) for name in image_layers.locked_requirements(lock)} | {"fairlead"}
    there = importlib.metadata.packages_distributions()
    away = [name for name, owners in there.items() if not locked & {_plain(one) for one in owners}]
    assert "pytest" in away
    command = [sys.executable, "-c", _WITHOUT, ",".join(away), ",".join(STARTED[component])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

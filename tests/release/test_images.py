"""Both ways of making an image say the same, and the locks of the images are parts of the lock."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead import __version__
from fairlead.distribution import DISTRIBUTION
from scripts.release.images import components
from scripts.release.images.bill_of_materials import locked_packages

ROOT = Path(__file__).parents[2]
PYTHON = "3.11.16"


@pytest.mark.parametrize("component", components.COMPONENTS)
def test_the_dockerfile_says_what_the_writer_does(component: str) -> None:
    text = (ROOT / component / "Dockerfile").read_text().replace("\\\n", " ")
    final = text.rpartition("\nFROM ")[2]
    environment = dict(
        pair.split("=", 1) for line in re.findall(r"^ENV (.*)$", final, re.MULTILINE) for pair in line.split()
    )
    assert environment == components.ENVIRONMENT
    assert re.findall(r"^USER (.*)$", final, re.MULTILINE) == [components.USER]
    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", final, re.MULTILINE)[0])
    assert tuple(entry) == components.COMPONENTS[component]
    assert f"requirements/images/{component}.txt" in text
    assert ("scripts/compile.py" in text) == (component in components.COMPILED)
    assert f"serving.fairlead.io/{component}:{__version__}" in text


@pytest.mark.parametrize("component", components.COMPONENTS)
def test_an_images_lock_is_part_of_the_lock_with_its_hashes(component: str) -> None:
    everything = (ROOT / "requirements" / "dev.txt").read_text()
    own = (ROOT / "requirements" / "images" / f"{component}.txt").read_text()
    assert set(locked_packages(own, PYTHON)) <= set(locked_packages(everything, PYTHON))
    for line in own.splitlines()[1:]:
        assert line in everything


def test_no_image_carries_what_only_development_needs() -> None:
    for component in components.COMPONENTS:
        names = {package.name for package in components.image_packages(component)}
        assert names.isdisjoint({"pytest", "mypy", "ruff", "hypothesis", "openai", "kubernetes"})
        assert ("matplotlib" in names) == (component == "cli")
        assert {"pydantic", "msgspec"} <= names


STARTED = {
    "gateway": (
        "fairlead_gateway.__main__",
        "fairlead_gateway.kv_index.supervisor.event_reader",
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
    locked = {_plain(package.name) for package in components.image_packages(component)} | {_plain(DISTRIBUTION)}
    there = importlib.metadata.packages_distributions()
    away = [name for name, owners in there.items() if not locked & {_plain(owner) for owner in owners}]
    assert "pytest" in away
    command = [sys.executable, "-c", _WITHOUT, ",".join(away), ",".join(STARTED[component])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

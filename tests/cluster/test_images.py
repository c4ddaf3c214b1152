"""Both ways of making an image say the same, and the locks of the images are parts of the lock."""

import json
import re
from pathlib import Path

import pytest
from cluster import images, rootfs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("component", images.COMPONENTS)
def test_the_dockerfile_says_what_the_writer_does(component: str) -> None:
    text = (ROOT / component / "Dockerfile").read_text().replace("\\\n", " ")
    final = text.rpartition("\nFROM ")[2]
    environment = dict(
        pair.split("=", 1) for line in re.findall(r"^ENV (.*)$", final, re.MULTILINE) for pair in line.split()
    )
    assert environment == images.ENVIRONMENT
    assert re.findall(r"^USER (.*)$", final, re.MULTILINE) == [images.USER]
    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", final, re.MULTILINE)[0])
    assert tuple(entry) == images.COMPONENTS[component]
    assert f"requirements/images/{component}.txt" in text
    assert ("scripts/compile.py" in text) == (component == "gateway")
    assert f"serving.fairlead.io/{component}:{images.version()}" in text


@pytest.mark.parametrize("component", images.COMPONENTS)
def test_an_images_lock_is_part_of_the_lock_with_its_hashes(component: str) -> None:
    everything = (ROOT / "requirements" / "dev.txt").read_text()
    own = ROOT / "requirements" / "images" / f"{component}.txt"
    assert rootfs.locked(own).items() <= rootfs.locked(ROOT / "requirements" / "dev.txt").items()
    for line in own.read_text().splitlines()[1:]:
        assert line in everything


def test_no_image_carries_what_only_development_needs() -> None:
    for component in images.COMPONENTS:
        names = rootfs.locked(ROOT / "requirements" / "images" / f"{component}.txt").keys()
        assert names.isdisjoint({"pytest", "mypy", "ruff", "hypothesis", "matplotlib", "openai", "kubernetes"})
        assert {"pydantic", "msgspec"} <= names


def test_a_layer_is_made_once_for_its_content(tmp_path: Path) -> None:
    store, made = images.Store(tmp_path), []

    def fill(root: Path) -> None:
        made.append(root)
        (root / "file").write_text("text")

    first = store.layer("one", "a", fill)
    assert store.layer("one", "a", fill) == first
    assert len(made) == 1
    store.layer("one", "b", fill)
    assert len(made) == 2

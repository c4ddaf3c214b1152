"""The repository keeps the shape that its README draws.

`operator` is a standard-library module. A file operator/__init__.py at the root would replace it
for every Python that starts there: ``python -m pytest`` dies while importing ``collections``. The
same holds for tests/operator/__init__.py under pytest. These tests fail before that happens.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPONENTS = ["operator", "gateway", "autoscaler", "kvstore", "sim", "cli", "downloader"]
PACKAGES = ["fairlead", *(f"{name}/fairlead_{name}" for name in COMPONENTS)]
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("folder", [*COMPONENTS, "tests", "e2e", "bench", "scripts"])
def test_top_level_folders_are_not_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_no_package_below_tests() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_no_module_at_the_top_of_a_component_hides_the_standard_library() -> None:
    for component in COMPONENTS:
        names = {
            path.stem
            for path in (ROOT / component).iterdir()
            if path.suffix == ".py" or (path / "__init__.py").exists()
        }
        assert names & set(sys.stdlib_module_names) == set()


@pytest.mark.parametrize("folder", [".", "operator", "operator/fairlead_operator", "tests", "tests/gateway"])
def test_python_starts_anywhere(folder: str) -> None:
    code = "import collections, operator, fairlead_gateway; assert operator.add(1, 2) == 3"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / folder, check=True)


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_has_a_readme_of_one_screen(component: str) -> None:
    lines = (ROOT / component / "README.md").read_text().splitlines()
    assert 5 <= len(lines) <= 60


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_typed_and_says_what_it_is_for(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
    assert ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text()))


def test_every_file_says_what_it_is_for() -> None:
    texts = {path: path.read_text() for path in SOURCES}
    silent = [path for path, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert silent == []


def test_every_public_name_of_the_shared_package_is_documented() -> None:
    """A body of one or two lines needs no docstring."""
    bare = []
    for path in (ROOT / "fairlead").rglob("*.py"):
        places: list[ast.Module | ast.ClassDef] = [ast.parse(path.read_text())]
        places += [node for node in places[0].body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        for node in [node for place in places for node in place.body]:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            is_short = not isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.body[0].lineno < 2
            if not node.name.startswith("_") and not is_short and not ast.get_docstring(node):
                bare.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert bare == []


def test_nothing_is_left_unfinished() -> None:
    words = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error", "not " + "implemented")
    unfinished = [f"{path.relative_to(ROOT)}: {word}" for path in SOURCES for word in words if word in path.read_text()]
    assert unfinished == []

"""The code map of CONTRIBUTING.md: files and functions exist, and a file is linked with an earlier
one.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from scripts.generators.page_lists import code_map

ROOT = Path(__file__).resolve().parents[2]
FOLDERS, *SECTIONS = code_map(ROOT).split("\n### ")
ROWS = [line for line in FOLDERS.splitlines() if line.startswith("| `")]


def _paths(text: str) -> list[str]:
    """Returns the files that a text names; a folder among them is where the files after it lie."""
    paths, folder = [], ""
    for span in re.findall(r"`([^`]+)`", text):
        if span.endswith(".py"):
            paths.append(f"{folder}{span}")
        elif "/fairlead" in span or span == "fairlead":
            folder = f"{span}/"
    return paths


WAYS = {section.partition("\n")[0]: section.partition("\n")[2] for section in SECTIONS}


@cache
def _tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@cache
def _imports(path: str) -> frozenset[str]:
    """Returns the modules that a file imports, with what their packages import of themselves."""
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def _names(path: str) -> set[str]:
    """Returns the module of a file, and its package if that imports from it."""
    name = re.sub(r"^.*?(?=fairlead)", "", path).removesuffix(".py").replace("/", ".")
    package = Path(path).with_name("__init__.py")
    exported = (ROOT / package).exists() and name in _imports(str(package))
    return {name, name.rpartition(".")[0]} if exported else {name}


def _are_linked(left: str, right: str) -> bool:
    """Whether one imports the other, or both use the messages of one folder."""
    messages = {name for name in _imports(left) & _imports(right) if name.endswith(".messages")}
    return bool(_imports(left) & _names(right) or _imports(right) & _names(left) or messages)


def _functions(path: str) -> set[str]:
    """Returns the functions of a file, methods with their class."""
    found = set()
    for node in _tree(path).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in ast.walk(node) if hasattr(one, "name")}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
    return found


def test_the_map_has_the_five_ways() -> None:
    ways = ["A streamed request", "A stream that breaks", "A KV event", "A limit of a tenant", "A scale decision"]
    assert list(WAYS) == ways
    assert all(8 <= len(re.findall(r"^\d+\. `", text, re.MULTILINE)) <= 13 for text in WAYS.values())


@pytest.mark.parametrize("row", ROWS)
def test_folders_of_the_map_exist(row: str) -> None:
    folders = [span for span in re.findall(r"`([^`]+)`", row) if not span.endswith(".py")]
    assert [path for path in _paths(row) if not (ROOT / path).is_file()] == []
    assert [folder for folder in folders if "/" in folder and not (ROOT / folder).is_dir()] == []


@pytest.mark.parametrize("way", WAYS)
def test_each_step_of_a_way_names_a_function_of_its_file(way: str) -> None:
    steps, folder = 0, ""
    for span, function in re.findall(r"`([^`]+)`(?:, `([^`]+)`)?", WAYS[way]):
        folder = f"{span}/" if "/fairlead" in span else folder
        if function:
            steps += 1
            assert function in _functions(f"{folder}{span}")
    assert steps == len(re.findall(r"^\d+\. ", WAYS[way], re.MULTILINE))


@pytest.mark.parametrize("way", WAYS)
def test_each_file_of_a_way_is_linked_with_an_earlier_one(way: str) -> None:
    paths = _paths(WAYS[way].replace("worker/worker.py", ""))
    apart = [
        path for at, path in enumerate(paths) if at and not any(_are_linked(earlier, path) for earlier in paths[:at])
    ]
    assert apart == []

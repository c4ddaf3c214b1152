"""The code map of CONTRIBUTING.md: each file of a way exists, and is linked with an earlier one."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from scripts.generators.page_lists import code_map

ROOT = Path(__file__).resolve().parents[2]
ROWS = [line.strip("| ").split(" | ") for line in code_map(ROOT).splitlines() if "| `" in line or "→" in line]


def _paths(cells: list[str]) -> list[str]:
    """Returns the files of a row; a folder among them is where the files after it lie."""
    paths, folder = [], ""
    for span in re.findall(r"`([^`]+)`", " ".join(cells)):
        if span.endswith(".py"):
            paths.append(f"{folder}{span}")
        elif "/fairlead" in span or span == "fairlead":
            folder = f"{span}/"
    return paths


WAYS = {cells[0]: _paths(cells[1:]) for cells in ROWS if "→" in cells[-1]}


@cache
def _imports(path: str) -> frozenset[str]:
    """Returns the modules that a file imports, with what their packages import of themselves."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
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


def test_the_map_has_the_five_ways() -> None:
    ways = ["A streamed request", "A stream that breaks", "A KV event", "A limit of a tenant", "A scale decision"]
    assert list(WAYS) == ways
    assert all(len(paths) >= 6 for paths in WAYS.values())


@pytest.mark.parametrize("cells", ROWS, ids=[cells[0].strip("`") for cells in ROWS])
def test_files_and_folders_of_the_map_exist(cells: list[str]) -> None:
    folders = [span for span in re.findall(r"`([^`]+)`", " ".join(cells)) if not span.endswith(".py")]
    assert [path for path in _paths(cells) if not (ROOT / path).is_file()] == []
    assert [folder for folder in folders if "/" in folder and not (ROOT / folder).is_dir()] == []


@pytest.mark.parametrize("way", WAYS)
def test_each_file_of_a_way_is_linked_with_an_earlier_one(way: str) -> None:
    paths = WAYS[way]
    apart = [
        path for at, path in enumerate(paths) if at and not any(_are_linked(earlier, path) for earlier in paths[:at])
    ]
    assert apart == []

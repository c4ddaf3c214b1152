"""The menus of the site: every page is in the menu of its folder, and guides are listed by task."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fairlead_testing.yaml_documents import load_document

DOCS = Path(__file__).resolve().parents[2] / "docs"
MENUS = sorted(path.parent for path in DOCS.rglob(".nav.yml"))


def menu(folder: Path) -> list[Any]:
    entries = load_document((folder / ".nav.yml").read_text(encoding="utf-8"))["nav"]
    assert isinstance(entries, list)
    return entries


def paths(entries: list[Any]) -> Iterator[str]:
    """Yields the pages and folders of a menu in their order; globs are left out."""
    for entry in entries:
        if isinstance(entry, str):
            yield entry.rstrip("/")
        elif "glob" not in entry:
            for value in entry.values():
                yield from paths(value) if isinstance(value, list) else paths([value])
        elif entry["glob"] != "*":
            yield entry["glob"]


@pytest.mark.parametrize("folder", MENUS, ids=lambda folder: str(folder.relative_to(DOCS)))
def test_each_page_and_folder_is_once_in_its_menu(folder: Path) -> None:
    listed = list(paths(menu(folder)))
    present = [path.name for path in folder.iterdir() if path.suffix == ".md" or any(path.glob("*.md"))]
    assert sorted(listed) == sorted(present)


def test_the_menu_of_guides_has_the_tasks_of_their_index() -> None:
    index = (DOCS / "how-to/index.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in index.splitlines() if "](" in line]
    first, *tasks = menu(DOCS / "how-to")
    assert first == "index.md"
    assert tasks == [{task: re.findall(r"\]\(([\w-]+\.md)\)", guides)} for task, guides in rows]


def test_getting_started_begins_with_what_needs_least() -> None:
    index = (DOCS / "getting-started/index.md").read_text(encoding="utf-8")
    assert menu(DOCS / "getting-started") == ["index.md", *re.findall(r"\]\(([\w-]+\.md)\)", index)]

"""Messages name pages of the documentation as the site has them: readers have no checkout."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fairlead", "autoscaler", "cli", "gateway", "kvstore", "operator", "sim")
SOURCE = re.compile(r"\bdocs/[\w/-]+\.md\b")
PAGE = re.compile(r"documentation_page\([\"']([\w/-]+)\.html[\"']\)")


def sources() -> dict[str, str]:
    paths = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def literals(text: str) -> Iterator[str]:
    """Yields the texts of a module that are not docstrings."""
    tree = ast.parse(text)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_no_message_names_a_source_file_of_a_page() -> None:
    texts = {path: text for path, text in sources().items() if SOURCE.search(text)}
    assert texts, "docstrings name some"
    assert [path for path, text in texts.items() if any(map(SOURCE.search, literals(text)))] == []


def test_pages_that_messages_name_exist() -> None:
    named = {page for text in sources().values() for page in PAGE.findall(text)}
    assert len(named) >= 3
    assert [page for page in named if not (ROOT / "docs" / f"{page}.md").is_file()] == []

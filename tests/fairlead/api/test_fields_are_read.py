"""Each field of a spec is read by the code that honours it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]
PACKAGES: Final = ("fairlead", "gateway", "kvstore", "operator", "autoscaler", "cli", "downloader")
PASSED_ON_WHOLE: Final = {"KeyReference", "FieldReference", "RequestDefaults", "Routing"}
"""Types that go on with all of their fields at once: to the API server, to engines, to gateways."""


def trees(folder: Path) -> Iterator[ast.Module]:
    return (ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py")))


def spec_fields(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields type and name of each field of the models in a folder."""
    for tree in trees(folder):
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.bases and node.name not in PASSED_ON_WHOLE:
                for item in node.body:
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                        yield node.name, item.target.id


def read_names() -> set[str]:
    nodes = (node for package in PACKAGES for tree in trees(ROOT / package) for node in ast.walk(tree))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_no_field_of_a_spec_is_set_and_read_by_nothing() -> None:
    fields, read = list(spec_fields(ROOT / "fairlead" / "api" / "spec")), read_names()
    assert len(fields) > 200
    assert [field for field in fields if field[1] not in read] == []

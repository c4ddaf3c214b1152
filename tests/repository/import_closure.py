"""Third-party packages that a module needs: the imports of all modules that it reaches.

Imports inside functions count, those for type checkers do not.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from repository_rules import PACKAGES, ROOT

FOLDERS = {Path(package).name: ROOT / Path(package).parent for package in PACKAGES}


def third_party_packages(entries: Iterable[str]) -> set[str]:
    """Returns the import packages of other projects that modules reach, such as ``yaml``."""
    visited: set[str] = set()
    packages: set[str] = set()
    pending = list(entries)
    while pending:
        name = pending.pop()
        if name in visited:
            continue
        visited.add(name)
        top = name.partition(".")[0]
        if top in FOLDERS:
            pending += _parents(name)
            pending += _imports(name)
        elif top not in sys.stdlib_module_names:
            packages.add(top)
    return packages


def module_file(name: str) -> Path | None:
    """Returns the file of one of our modules, None for other names."""
    folder = FOLDERS.get(name.partition(".")[0])
    if folder is None:
        return None
    path = folder / name.replace(".", "/")
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.exists()), None)


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:depth]) for depth in range(1, len(parts)))


@cache
def _imports(name: str) -> tuple[str, ...]:
    """Returns the modules that a module of ours imports anywhere in its text; none in Cython."""
    path = module_file(name)
    if path is None and (FOLDERS[name.partition(".")[0]] / name.replace(".", "/")).with_suffix(".pyx").exists():
        return ()
    assert path is not None, f"no module {name}"
    imported: list[str] = []
    for node in _statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.append(node.module)
            below = (f"{node.module}.{alias.name}" for alias in node.names)
            imported += [module for module in below if module_file(module)]
    return tuple(imported)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the statements below a node; not those for type checkers, and no expressions."""
    for field in ("body", "orelse", "handlers", "finalbody", "cases"):
        for child in getattr(node, field, ()):
            if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
                yield child
                yield from _statements(child)

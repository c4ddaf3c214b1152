"""The reference page of limits, from the marks in the code that enforces them.

A mark is a constant whose docstring begins with ``Limit:``, or a field that `limit(value, why)`
declares.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PACKAGES: Final = ("gateway", "kvstore", "fairlead", "operator", "autoscaler", "cli", "downloader", "sim")
_MARK: Final = "Limit: "

Limit = tuple[str, float, str]
"""Name, value and reason of a limit."""


def limits_page(root: Path, note: str) -> str:
    """Returns docs/reference/limits.md: a table for each package, in the order of its files."""
    parts = [
        f"{note}# Limits\n\nEvery limit of Fairlead, with its reason. A request or file beyond a limit gets an\n"
        "error. A full buffer drops entries or pauses its source, and a wait that is too long ends. Limits are\n"
        "constants of a release; where a variable is named, it sets another value.\n"
    ]
    for package in PACKAGES:
        limits = list(package_limits(root / package))
        rows = "".join(f"| `{name}` | {_number(name, value)} | {why} |\n" for name, value, why in limits)
        if rows:
            parts.append(f"## `{package}`\n\n| Limit | Value | Why |\n|---|---|---|\n{rows}")
    return "\n".join(parts)


def package_limits(folder: Path) -> Iterator[Limit]:
    """Yields the limits that the modules of a folder mark. A constant's name is in lower case."""
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if _MARK in text or "limit(" in text:
            yield from _module_limits(ast.parse(text))


def _module_limits(module: ast.Module) -> Iterator[Limit]:
    for statement, below in zip(module.body, [*module.body[1:], None], strict=True):
        match statement, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value),
                ast.Expr(value=ast.Constant(value=str(text))),
            ) if text.startswith(_MARK):
                yield name.lower(), _value(value), " ".join(text.removeprefix(_MARK).split()).removesuffix(".")
            case ast.ClassDef(body=body), _:
                for field in body:
                    match field:
                        case ast.AnnAssign(
                            target=ast.Name(id=name),
                            value=ast.Call(func=ast.Name(id="limit"), args=[value, ast.Constant(value=why)]),
                        ):
                            yield name, _value(value), str(why)


def _value(expression: ast.expr) -> float:
    """Returns the value of numbers and their products."""
    match expression:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left) * _value(right)
    raise ValueError(f"{ast.unparse(expression)} is not a number or a product of numbers")


def _number(name: str, value: float) -> str:
    if name.endswith("_bytes") and value % 1024 == 0:
        return f"{value // 1024**2:,} MiB" if value % 1024**2 == 0 else f"{value // 1024:,} KiB"
    if name.endswith("_seconds"):
        return f"{value:g} s"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"

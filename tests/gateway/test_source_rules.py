"""Rules for the gateway's sources that keep what one request can cost small."""

import ast
import importlib
import pkgutil
import re
import re._constants as ops  # type: ignore[import-not-found]
import re._parser as patterns  # type: ignore[import-not-found]
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fairlead_gateway

GATEWAY = Path(fairlead_gateway.__file__).parent
ONE_CHARACTER = {ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN}
MAX_REPEATS = 1_024
SHORT_TEXTS = {
    "_FIELD_LINES": "heads",
    "_PLAIN_PATH": "paths",
    "_HOP_IDS": "values of a head",
    "_HEADER_NAMES": "values of a head",
    "_TEXT_MEMBER": "the first 64 KiB of a refusal",
}
"""Patterns that read texts with a limit of their own."""


def repeated_groups(parsed: Any) -> Iterator[int]:
    """Yields how often groups may repeat for which the matcher keeps a state each time."""
    for op, value in parsed:
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            item = value[2]
            if len(item) != 1 or item[0][0] not in ONE_CHARACTER:
                yield int(value[1])
            yield from repeated_groups(item)
        elif op is ops.SUBPATTERN:
            yield from repeated_groups(value[3])
        elif op is ops.BRANCH:
            for branch in value[1]:
                yield from repeated_groups(branch)
        elif op in (ops.ASSERT, ops.ASSERT_NOT):
            yield from repeated_groups(value[1])


def test_no_pattern_keeps_a_state_for_each_byte_of_a_long_text() -> None:
    unbounded = set()
    for module in pkgutil.walk_packages(fairlead_gateway.__path__, "fairlead_gateway."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, re.Pattern) and name not in SHORT_TEXTS:
                flags = value.flags & ~re.UNICODE if isinstance(value.pattern, bytes) else value.flags
                if any(times > MAX_REPEATS for times in repeated_groups(patterns.parse(value.pattern, flags))):
                    unbounded.add(f"{module.name}.{name}")
    assert not unbounded


def functions() -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for path in sorted(GATEWAY.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


def test_no_raised_error_is_kept_by_its_own_frame() -> None:
    """An error keeps the frames it has passed. In one of them that still names it, the cycle keeps
    the request and its body until the garbage collector runs.
    """
    for function in functions():
        nodes = list(ast.walk(function))
        handled = {node.name for node in nodes if isinstance(node, ast.ExceptHandler)}
        deleted = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Del)}
        stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        raised = {node.exc.id for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name)}
        assert not raised & stored - handled - deleted, function.name


def test_few_folders_import_each_other_and_the_contract_says_why() -> None:
    imports: dict[str, set[str]] = {}
    for path in GATEWAY.rglob("*.py"):
        folder = path.relative_to(GATEWAY).parts[0].removesuffix(".py")
        modules = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        named = [module.split(".")[1] for module in modules if module and module.startswith("fairlead_gateway.")]
        imports.setdefault(folder, set()).update(named)
    pairs = {(one, other) for one in imports for other in imports[one] if one < other and one in imports.get(other, ())}
    features = ("admission", "disaggregation", "limits", "resilience", "telemetry")
    reads_request = {(min(name, "request_context"), max(name, "request_context")) for name in features}
    assert pairs == reads_request | {("audit", "supervisor"), ("continuation", "proxy"), ("kv_index", "supervisor")}

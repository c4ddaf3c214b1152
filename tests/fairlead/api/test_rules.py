"""The table of accepted and refused manifests, for `fairlead lint` and for a real API server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead.api.crd import crd_manifest
from fairlead.api.kinds import served_kinds
from fairlead.errors import FileProblem
from fairlead.limits import Limits
from fairlead.manifests.loader import combine_texts, parse_manifests
from fairlead_testing.kube.api_server import (
    AcceptedCase,
    ChangedCase,
    RefusedCase,
    accepted_cases,
    changed_cases,
    refused_cases,
    without_empty,
)

TABLE = Path(__file__).parent / "rules"
REFUSED = list(refused_cases(TABLE))
CHANGED = list(changed_cases(TABLE))
ACCEPTED = list(accepted_cases(TABLE))


def problems(manifest: dict[str, Any]) -> list[FileProblem]:
    return combine_texts([("case.yaml", yaml.safe_dump(manifest))], limits=Limits(), complete=False)[1]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_lint_names_field_and_fix(case: RefusedCase) -> None:
    (problem,) = problems(case.object)
    assert problem.field == case.field
    assert f"{problem.message}: {problem.fix}".startswith(case.lint)


@pytest.mark.parametrize("case", CHANGED, ids=lambda case: case.name)
def test_both_sides_of_a_refused_change_are_valid(case: ChangedCase) -> None:
    assert problems(case.before) == []
    assert problems(case.after) == []


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_valid_objects_get_their_defaults(case: AcceptedCase) -> None:
    (document,) = parse_manifests(yaml.safe_dump(case.object), file="case.yaml")
    if case.becomes is not None:
        spec = json.loads(document.value.spec.model_dump_json(by_alias=True, exclude_none=True))
        assert without_empty(spec) == without_empty(case.becomes)


def walk(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    if isinstance(node.get("items"), dict):
        yield from walk(node["items"], path)


def schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in served_kinds():
        (version,) = crd_manifest(kind)["spec"]["versions"]
        yield from walk(version["schema"]["openAPIV3Schema"], kind.name)


def test_every_rule_has_a_violating_case() -> None:
    rules = {rule["message"] for _, node in schemas() for rule in node.get("x-kubernetes-validations", [])}
    assert rules - {case.server for case in REFUSED} - {case.says for case in CHANGED} == set()


def test_every_default_appears_in_a_case() -> None:
    fields = ((path, node) for path, node in schemas() if ".spec." in path and node.get("type") != "object")
    defaults = {path for path, node in fields if "default" in node}
    shown = {path for case in ACCEPTED if case.becomes for path in _paths(case.becomes, f"{case.object['kind']}.spec")}
    assert defaults - shown == set()


def _paths(value: Any, path: str) -> Iterator[str]:
    yield path
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _paths(below, f"{path}.{key}")
    elif isinstance(value, list):
        for below in value:
            yield from _paths(below, path)

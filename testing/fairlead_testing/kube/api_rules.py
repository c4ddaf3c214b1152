"""Manifests that the API accepts and rejects, for tests of lint and of a real server."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead_testing.yaml_documents import load_document

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RefusedCase:
    """A rejected object.

    lint: start of `fairlead lint`'s message and fix for `field`.
    server: part of the server's message.
    """

    name: str
    object: Manifest
    field: str
    lint: str
    server: str


@dataclass(frozen=True, slots=True)
class ChangedCase:
    """Two valid objects, where the change from one to the other is rejected with `says`."""

    name: str
    before: Manifest
    after: Manifest
    says: str


@dataclass(frozen=True, slots=True)
class AcceptedCase:
    """A valid object. `becomes` is its spec with defaults; None if it does not matter."""

    name: str
    object: Manifest
    becomes: Manifest | None


def refused_cases(folder: Path) -> Iterator[RefusedCase]:
    """Yields the cases of `refused.yaml`."""
    table = _table(folder / "refused.yaml")
    for case in table["cases"]:
        merged = merge(table["bases"][case["base"]], case["change"])
        both = case.get("says")
        yield RefusedCase(case["name"], merged, case["field"], both or case["lint"], both or case["server"])


def changed_cases(folder: Path) -> Iterator[ChangedCase]:
    """Yields the cases of `changed.yaml`."""
    for case in _table(folder / "changed.yaml")["cases"]:
        yield ChangedCase(case["name"], case["before"], merge(case["before"], case["change"]), case["says"])


def accepted_cases(folder: Path) -> Iterator[AcceptedCase]:
    """Yields the cases of `accepted.yaml`."""
    for case in _table(folder / "accepted.yaml")["cases"]:
        yield AcceptedCase(case["name"], case["object"], case.get("becomes"))


def merge(base: Manifest, change: Manifest) -> Manifest:
    """Returns `change` merged over `base`. None removes a value; other values replace it."""
    result = deepcopy(base)
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = deepcopy(value)
    return result


def without_empty(value: Any) -> Any:
    """Returns a value without empty lists and mappings, which equal absent ones."""
    if isinstance(value, dict):
        kept = {key: without_empty(below) for key, below in value.items()}
        return {key: below for key, below in kept.items() if below not in ({}, [])}
    return [without_empty(below) for below in value] if isinstance(value, list) else value


def _table(path: Path) -> Manifest:
    found = load_document(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found

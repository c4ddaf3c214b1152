"""The JSON schema of manifests: it takes what `fairlead lint` takes, and names wrong fields."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fairlead.api.kinds import served_kinds
from fairlead.api.manifest_schema import SCHEMA_FILE, manifest_schema
from fairlead.api.v1alpha1 import API_VERSION
from fairlead_testing.yaml_documents import load_document, load_documents

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "crds" / "schema" / SCHEMA_FILE
FLEET_FILE = ROOT / "examples" / "adapters" / "fleet.yaml"
EXAMPLES = sorted(set((ROOT / "examples").rglob("*.yaml")) - {FLEET_FILE})
RENDER_CASES = sorted((ROOT / "tests" / "operator" / "render" / "cases").glob("*.yaml"))
VALIDATOR: Any = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
EDITOR_COMMENT = re.compile(r"^# yaml-language-server: \$schema=(\S+)$", re.MULTILINE)


def walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def test_committed_schema_is_that_of_the_types() -> None:
    assert VALIDATOR.schema == manifest_schema()
    VALIDATOR.check_schema(VALIDATOR.schema)
    assert set(VALIDATOR.schema["definitions"]) == {kind.name for kind in served_kinds()}


def test_no_word_of_structural_schemas_is_left() -> None:
    for node in walk(VALIDATOR.schema["definitions"]):
        assert not any(str(key).startswith("x-kubernetes-") for key in node)
        assert isinstance(node.get("exclusiveMinimum", 0), (int, float))
        assert node.get("exclusiveMinimum") is not True


@pytest.mark.parametrize("path", [*EXAMPLES, *RENDER_CASES], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_valid_manifests_are_valid_for_editors(path: Path) -> None:
    for document in load_documents(path.read_text(encoding="utf-8")):
        assert [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(document)] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_each_document_of_an_example_names_the_schema(path: Path) -> None:
    """Editors read the comment in each document by itself."""
    for text in re.split(r"^---\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
        if load_document(text)["apiVersion"] == API_VERSION:
            (address,) = EDITOR_COMMENT.findall(text)
            assert (path.parent / address).resolve() == SCHEMA


SMALLEST = load_document((ROOT / "examples" / "01-smallest.yaml").read_text(encoding="utf-8"))
UNKNOWN_FIELD = "Additional properties are not allowed"


@pytest.mark.parametrize(
    ("path", "value", "place", "message"),
    [
        (("apiVersion",), "serving.fairlead.io/v1", "$.apiVersion", "was expected"),
        (("kind",), "ModelDeploymnt", "$.kind", "is not one of"),
        (("metadata", "name"), "Upper", "$.metadata.name", "does not match"),
        (("metadata", "label"), {}, "$.metadata", UNKNOWN_FIELD),
        (("specs",), {}, "$", UNKNOWN_FIELD),
        (("spec", "enginee"), {}, "$.spec", UNKNOWN_FIELD),
        (("spec", "engine", "typ"), "Sim", "$.spec.engine", UNKNOWN_FIELD),
        (("spec", "engine", "type"), "Vllm", "$.spec.engine.type", "is not one of"),
        (("spec", "pools"), [], "$.spec.pools", "should be non-empty"),
        (("spec", "pools", 0, "minReplicas"), -1, "$.spec.pools[0].minReplicas", "is less than the minimum"),
        (("spec", "pools", 0, "minReplicas"), "two", "$.spec.pools[0].minReplicas", "is not of type 'integer'"),
        (("spec", "pools", 0, "gpus"), 4, "$.spec.pools[0]", UNKNOWN_FIELD),
        (("spec", "slo"), {"ttft": "fast"}, "$.spec.slo.ttft", "does not match"),
    ],
)
def test_a_wrong_field_is_named_by_its_place(
    path: tuple[str | int, ...], value: object, place: str, message: str
) -> None:
    document = copy.deepcopy(SMALLEST)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (error,) = VALIDATOR.iter_errors(document)
    assert error.json_path == place
    assert message in error.message


@pytest.mark.parametrize("field", ["apiVersion", "kind", "metadata", "spec"])
def test_an_absent_field_is_named(field: str) -> None:
    document = {name: value for name, value in SMALLEST.items() if name != field}
    (error,) = VALIDATOR.iter_errors(document)
    assert error.message == f"'{field}' is a required property"


def test_fields_of_a_pod_template_are_free() -> None:
    document = copy.deepcopy(SMALLEST)
    document["spec"]["pools"][0]["template"] = {"spec": {"newerField": 1}}
    assert VALIDATOR.is_valid(document)


def test_objects_of_other_groups_pass() -> None:
    assert VALIDATOR.is_valid({"apiVersion": "v1", "kind": "Secret", "stringData": {}})

"""The CRDs: what is committed is generated, and it stays within the language of structural schemas.

The rules below are the API server's own, as far as they can be checked without one.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from fairlead.api.crd import crd_manifest, structural_schema
from fairlead.api.kinds import CustomResourceKind, served_kinds
from fairlead_testing.yaml_documents import load_document

ROOT = Path(__file__).parents[3]
CRDS = {kind.name: load_document((ROOT / "crds" / f"{kind.plural}.yaml").read_text()) for kind in served_kinds()}
KEYWORDS = {
    "type", "format", "description", "properties", "items", "additionalProperties", "required", "enum", "default", "pattern",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems", "anyOf",
    "minProperties", "maxProperties", "x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
    "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string",
}  # fmt: skip
OFF_WHEN_LEFT_OUT = {
    "cache", "configMapKeyRef", "secretKeyRef", "valueFrom", "template", "selector", "offload", "peers",
    "adapters", "download", "sleep", "budget", "canary", "shadow",
}  # fmt: skip
"""Objects that mean something by being there; their defaults are for when they are."""
TYPES: dict[str, Any] = {
    "object": dict, "string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list,
    "int-or-string": (int, str),
}  # fmt: skip


def schema(kind: str) -> dict[str, Any]:
    (version,) = CRDS[kind]["spec"]["versions"]
    openapi_schema = version["schema"]["openAPIV3Schema"]
    assert isinstance(openapi_schema, dict)
    return openapi_schema


def walk(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(node.get(name), dict):
            yield from walk(node[name], f"{path}[]")


@pytest.mark.parametrize("kind", served_kinds(), ids=lambda kind: kind.name)
def test_committed_crd_equals_the_generated_one(kind: CustomResourceKind) -> None:
    assert CRDS[kind.name] == crd_manifest(kind)


@pytest.mark.nightly
def test_all_generated_files_are_committed() -> None:
    """`make lint` runs this too."""
    done = subprocess.run(
        [sys.executable, "scripts/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", CRDS)
def test_every_value_has_a_type_and_only_known_keywords(kind: str) -> None:
    for path, node in walk(schema(kind)):
        assert set(node) <= KEYWORDS, path
        assert ("type" in node) != ("x-kubernetes-int-or-string" in node), path
        assert ("anyOf" in node) == ("x-kubernetes-int-or-string" in node), path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert (node.get("type") == "array") == ("items" in node), path


@pytest.mark.parametrize("kind", CRDS)
def test_every_default_satisfies_its_schema(kind: str) -> None:
    for path, node in walk(schema(kind)):
        if "default" not in node:
            continue
        default = node["default"]
        assert default is not None, path
        assert "enum" not in node or default in node["enum"], path
        assert isinstance(default, TYPES[node.get("type", "int-or-string")]), path
        if node.get("type") == "object":
            # The server holds a default against the rules before it fills in what lies below.
            below = {name: child["default"] for name, child in node["properties"].items() if "default" in child}
            assert default == below, path
            assert set(node.get("required", [])) <= set(default), path


@pytest.mark.parametrize("kind", CRDS)
def test_every_default_is_reachable(kind: str) -> None:
    """A default below an optional object without a default would never apply."""

    def check(node: dict[str, Any], path: str) -> None:
        for name, child in node.get("properties", {}).items():
            defaulted = any("default" in below for _, below in walk(child) if below is not child)
            if child.get("type") == "object" and defaulted and name not in OFF_WHEN_LEFT_OUT:
                assert name in node.get("required", []) or "default" in child, f"{path}.{name}"
            check(child, f"{path}.{name}")

    check(schema(kind)["properties"]["spec"], "spec")


@pytest.mark.parametrize("kind", CRDS)
def test_list_map_keys_are_always_present(kind: str) -> None:
    for path, node in walk(schema(kind)):
        for key in node.get("x-kubernetes-list-map-keys", []):
            item = node["items"]
            assert key in item.get("required", []) or "default" in item["properties"][key], path


@pytest.mark.parametrize("kind", CRDS)
def test_cel_rules_name_existing_fields(kind: str) -> None:
    rules = 0
    for path, node in walk(schema(kind)):
        for rule in node.get("x-kubernetes-validations", []):
            rules += 1
            assert ": " in rule["message"], f"{path}: what is wrong, and the fix"
            text = rule["rule"]
            if rule.get("optionalOldSelf"):
                text = text.replace("oldSelf.hasValue()", "true").replace("oldSelf.value().?", "self.")
            assert set(re.findall(r"\b(?:self|oldSelf)\.(\w+)", text)) <= set(node["properties"]), path
            below = node
            for step in rule.get("fieldPath", "").split(".")[1:]:
                below = below["properties"][step]
    assert rules


@pytest.mark.parametrize("kind", CRDS)
def test_growing_values_are_bounded(kind: str) -> None:
    """Unbounded lists and texts make CEL rules unaffordable to the API server."""
    for path, node in walk(schema(kind)["properties"]["spec"]):
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if node.get("type") == "string":
            assert "maxLength" in node or "enum" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


@pytest.mark.parametrize("kind", CRDS)
def test_patterns_are_anchored_without_look_around(kind: str) -> None:
    for path, node in walk(schema(kind)):
        if "pattern" in node:
            assert node["pattern"].startswith("^"), path
            assert node["pattern"].endswith("$"), path
            assert "(?" not in node["pattern"], f"{path}: Go's regular expressions have no look-around"


@pytest.mark.parametrize("kind", served_kinds(), ids=lambda kind: kind.name)
def test_names_scope_and_columns_match_the_design(kind: Any) -> None:
    spec = CRDS[kind.name]["spec"]
    assert CRDS[kind.name]["metadata"]["name"] == f"{kind.plural}.serving.fairlead.io"
    assert spec["names"]["categories"] == ["fairlead"]
    assert spec["names"]["shortNames"] == [
        {
            "ModelDeployment": "mdep",
            "AcceleratorClass": "accel",
            "ModelTenant": "mtenant",
            "ModelRoute": "mroute",
            "ModelAdapter": "madp",
        }[kind.name]
    ]
    namespaced = ("ModelDeployment", "ModelRoute", "ModelAdapter")
    assert spec["scope"] == ("Namespaced" if kind.name in namespaced else "Cluster")
    for column in spec["versions"][0]["additionalPrinterColumns"]:
        path = re.sub(r"\[\?\(@\.type==\"\w+\"\)\]", "", column["jsonPath"])
        steps = path.removeprefix(".").split(".")
        if steps[0] == "metadata":
            continue
        node = schema(kind.name)
        for step in steps:
            node = node["properties"][step]
            node = node.get("items", node)
        assert node["type"] == column["type"]


def test_printer_columns_name_existing_conditions() -> None:
    columns = CRDS["ModelDeployment"]["spec"]["versions"][0]["additionalPrinterColumns"]
    named = {name for column in columns for name in re.findall(r'@\.type=="(\w+)"', column["jsonPath"])}
    assert named == {"Ready", "SLOMet", "Autoscaling"}


def test_status_and_scale_are_subresources() -> None:
    (version,) = CRDS["ModelDeployment"]["spec"]["versions"]
    assert version["subresources"] == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    }
    fields = schema("ModelDeployment")["properties"]
    assert fields["spec"]["properties"]["replicas"]["type"] == "integer"
    assert {fields["status"]["properties"][name]["type"] for name in ("replicas", "selector")} == {"integer", "string"}


@pytest.mark.parametrize("kind", CRDS)
def test_every_field_has_a_description(kind: str) -> None:
    fields = schema(kind)["properties"]
    for part in ("spec", "status"):
        for path, node in walk(fields.get(part, {"type": "object", "description": "none"}), part):
            leaf = not path.endswith("[]")
            assert not leaf or node.get("description"), path


@pytest.mark.parametrize("kind", CRDS)
def test_optional_scalars_without_a_default_say_what_leaving_them_out_means(kind: str) -> None:
    spec = schema(kind)["properties"]["spec"]
    for path, node in walk(spec, "spec"):
        for name in node.get("properties", {}).keys() - node.get("required", []):
            field = node["properties"][name]
            if "default" not in field and field.get("type") not in ("object", "array"):
                assert "left out" in field["description"].lower(), f"{path}.{name}"


class Loop(BaseModel):
    """Contains itself."""

    inner: "Loop | None" = None


class Union(BaseModel):
    """Text or number."""

    value: int | str


class Inner(BaseModel):
    """Has a default."""

    size: int = 3


class Loose(BaseModel):
    """A mapping, an exclusive bound, a default of an object and a value of any type."""

    labels: dict[str, str] = {}
    size: Annotated[float, Field(lt=3)] = 1.0
    anything: Any = None
    inner: Inner = Inner()


def test_caller_may_change_the_manifest_it_gets() -> None:
    kind = served_kinds()[0]
    del crd_manifest(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert crd_manifest(kind) == CRDS[kind.name]


def test_type_without_structural_schema_fails_generation() -> None:
    with pytest.raises(TypeError, match="contains itself"):
        structural_schema(Loop)
    with pytest.raises(TypeError, match=r"Union\.value: a union of 2 types"):
        structural_schema(Union)


def test_remaining_json_schema_features_are_translated() -> None:
    fields = structural_schema(Loose)["properties"]
    assert fields["labels"] == {"type": "object", "default": {}, "additionalProperties": {"type": "string"}}
    assert fields["size"] == {"type": "number", "maximum": 3, "exclusiveMaximum": True, "default": 1.0}
    assert fields["anything"] == {"x-kubernetes-preserve-unknown-fields": True}
    assert fields["inner"]["default"] == {"size": 3}


@pytest.mark.parametrize("path", sorted((ROOT / "crds").glob("*.yaml")), ids=lambda path: path.name)
def test_no_key_is_a_boolean_for_kubectl(path: Path) -> None:
    """YAML 1.1, which kubectl and helm read, takes a bare `n` or `y` for a boolean."""
    assert re.findall(r"(?m)^[ -]*[nNyY]:", path.read_text(encoding="utf-8")) == []

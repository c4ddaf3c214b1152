"""Texts of values stay texts: a text of several lines is refused, or becomes no object."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead_testing.yaml_documents import load_documents

CHART = Path(__file__).parents[2] / "charts" / "fairlead"
BINDING = "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: x}}"
ENABLED = {
    "alerts": {"enabled": True},
    "autoscaler": {"enabled": True},
    "httpRoute": {"enabled": True},
    "ingress": {"enabled": True},
    "indexer": {"enabled": True},
}


def texts(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yields the path of each text of the values, and whether it is one of a list."""
    for name, field in schema.get("properties", {}).items():
        if field.get("type") == "object":
            yield from texts(field, (*path, name))
        elif field.get("type") == "array" and field["items"].get("type") == "string":
            yield (*path, name), True
        elif field.get("type") == "string":
            yield (*path, name), False


TEXTS = list(texts(json.loads((CHART / "values.schema.json").read_text())))


def rendered(program: Path, folder: Path, *values: tuple[tuple[str, ...], object]) -> subprocess.CompletedProcess[str]:
    content: dict[str, Any] = {}
    for path, value in values:
        at = content
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = value
    files = [folder / "enabled.yaml", folder / "values.yaml"]
    for file, given in zip(files, (ENABLED, content), strict=True):
        file.write_text(yaml.safe_dump(given))
    command = [program, "template", "x", CHART, "--namespace", "fairlead"]
    return subprocess.run(
        [*map(str, command), *(f"--values={file}" for file in files)], capture_output=True, text=True, check=False
    )


def is_injected(done: subprocess.CompletedProcess[str]) -> bool:
    """Returns True if one of the texts has become an object."""
    objects = load_documents(done.stdout) if done.returncode == 0 else ()
    return bool({manifest["metadata"]["name"] for manifest in objects if manifest} & {"x", "y"})


@pytest.mark.parametrize("line", ["a\n  rules: []", "a}"], ids=["in a block", "within braces"])
def test_text_of_several_lines_becomes_no_object(program: Path, tmp_path: Path, line: str) -> None:
    """The schema refuses most texts, which helm names at once; the others are rendered."""
    text = f"{line}\n---\n{BINDING}\n---\nkind: ConfigMap\nmetadata: {{name: y}}\ndata: "
    values = {path: [text] if is_list else text for path, is_list in TEXTS}
    errors = rendered(program, tmp_path, *values.items()).stderr
    refused = {tuple(path.split("/")) for path in re.findall(r"at '/(\S+?)(?:/0)?': '.*' does not match", errors)}
    assert len(refused) > len(TEXTS) / 2
    others = [(path, value) for path, value in values.items() if path not in refused]
    together = rendered(program, tmp_path, *others)
    if together.returncode or is_injected(together):  # then each alone, by name
        assert [path for path, value in others if is_injected(rendered(program, tmp_path, (path, value)))] == []


def test_namespaces_and_names_of_digits_stay_texts(program: Path, tmp_path: Path) -> None:
    for path, value in ((("watchNamespaces",), ["123", "true"]), (("ingress", "className"), "123")):
        done = rendered(program, tmp_path, (path, value))
        assert done.returncode == 0, done.stderr
        for document in load_documents(done.stdout):
            if document:
                assert isinstance(document["metadata"].get("namespace", ""), str)
                assert isinstance(document.get("spec", {}).get("ingressClassName", ""), str)


MAPS = (
    *((part, "nodeSelector") for part in ("operator", "gateway", "indexer", "autoscaler", "redis")),
    *((part, "podAnnotations") for part in ("operator", "gateway", "indexer", "autoscaler")),
    ("gateway", "service", "annotations"),
    ("ingress", "annotations"),
    ("alerts", "labels"),
    ("alerts", "alertLabels"),
    ("serviceMonitors", "labels"),
    ("dashboards", "labels"),
    ("dashboards", "annotations"),
)
"""Labels and annotations among the values."""
SCALARS = {"whole": 8181, "great": 10485760, "part": 0.5, "yes": True, "no": False, "word": "a b", "lines": "a\nb: c"}
AS_TEXT = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in SCALARS.items()}


def maps_with(value: Any, name: str) -> Iterator[dict[str, Any]]:
    """Yields the mappings within a value that have a name."""
    if isinstance(value, dict):
        if name in value:
            yield value
        for child in value.values():
            yield from maps_with(child, name)
    elif isinstance(value, list):
        for child in value:
            yield from maps_with(child, name)


def test_labels_and_annotations_are_texts(program: Path, tmp_path: Path) -> None:
    served = ("monitoring.coreos.com/v1", "gateway.networking.k8s.io/v1")
    names = {path: f"example.com/at-{number}" for number, path in enumerate(MAPS)}
    for kind, value in SCALARS.items():
        content: dict[str, Any] = {}
        for path, name in names.items():
            at = content
            for step in path[:-1]:
                at = at.setdefault(step, {})
            at[path[-1]] = {name: value}
        for part in ("alerts", "serviceMonitors", "dashboards", "ingress"):
            content[part]["enabled"] = True
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(content))
        command = [program, "template", "x", CHART, f"--values={tmp_path / 'values.yaml'}"]
        done = subprocess.run(
            [*map(str, command), *(f"--api-versions={version}" for version in served)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        objects = [document for document in load_documents(done.stdout) if document]
        for path, name in names.items():
            written = [mapping[name] for mapping in maps_with(objects, name)]
            assert written, path
            assert set(written) == {AS_TEXT[kind]}, path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("gateway", "podAnnotations"), {"a": ["b"]}),
        (("ingress", "annotations"), {"a": {"b": "c"}}),
        (("operator", "tolerations"), [{"key": "gpu", "value": True}]),
        (("redis", "tolerations"), [{"key": "gpu", "value": 1}]),
    ],
)
def test_value_that_cannot_be_a_text_is_refused_by_name(
    program: Path, tmp_path: Path, path: tuple[str, ...], value: object
) -> None:
    done = rendered(program, tmp_path, (path, value))
    assert done.returncode != 0
    assert "/".join(path) in done.stderr


def test_condition_of_a_parent_chart_turns_the_chart_on_and_off(program: Path, tmp_path: Path) -> None:
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "fairlead").symlink_to(CHART)
    dependency = {"name": "fairlead", "version": "*", "repository": "", "condition": "fairlead.enabled"}
    head = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [dependency]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(head))
    for enabled in (True, False):
        command = [str(program), "template", "x", str(tmp_path), f"--set=fairlead.enabled={str(enabled).lower()}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ("kind: Deployment" in done.stdout) == enabled
    alone = subprocess.run(
        [str(program), "template", "x", str(CHART), "--set=enabled=false"], capture_output=True, text=True, check=False
    )
    assert "enabled" in alone.stderr

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
    return bool({one["metadata"]["name"] for one in objects if one} & {"x", "y"})


@pytest.mark.parametrize("line", ["a\n  rules: []", "a}"], ids=["in a block", "within braces"])
def test_text_of_several_lines_becomes_no_object(program: Path, tmp_path: Path, line: str) -> None:
    """The schema refuses most texts, which helm names at once; the others are rendered."""
    text = f"{line}\n---\n{BINDING}\n---\nkind: ConfigMap\nmetadata: {{name: y}}\ndata: "
    values = {path: [text] if is_list else text for path, is_list in TEXTS}
    said = rendered(program, tmp_path, *values.items()).stderr
    refused = {tuple(path.split("/")) for path in re.findall(r"at '/(\S+?)(?:/0)?': '.*' does not match", said)}
    assert len(refused) > len(TEXTS) / 2
    others = [(path, value) for path, value in values.items() if path not in refused]
    together = rendered(program, tmp_path, *others)
    if together.returncode or is_injected(together):  # then each alone, by name
        assert [path for path, value in others if is_injected(rendered(program, tmp_path, (path, value)))] == []


def test_namespaces_and_names_of_digits_stay_texts(program: Path, tmp_path: Path) -> None:
    for path, value in ((("watchNamespaces",), ["123", "true"]), (("ingress", "className"), "123")):
        done = rendered(program, tmp_path, (path, value))
        assert done.returncode == 0, done.stderr
        for one in load_documents(done.stdout):
            if one:
                assert isinstance(one["metadata"].get("namespace", ""), str)
                assert isinstance(one.get("spec", {}).get("ingressClassName", ""), str)

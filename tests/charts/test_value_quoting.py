"""Texts of values stay texts: a text of several lines is refused, or becomes no object."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

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


def rendered(program: Path, folder: Path, path: tuple[str, ...], value: object) -> subprocess.CompletedProcess[str]:
    values: Any = value
    for name in reversed(path):
        values = {name: values}
    files = [folder / "enabled.yaml", folder / "values.yaml"]
    for file, content in zip(files, (ENABLED, values), strict=True):
        file.write_text(yaml.safe_dump(content))
    command = [program, "template", "x", CHART, "--namespace", "fairlead"]
    return subprocess.run(
        [*map(str, command), *(f"--values={file}" for file in files)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("path", "is_list"), TEXTS, ids=[".".join(path) for path, _ in TEXTS])
def test_text_of_several_lines_becomes_no_object(
    program: Path, tmp_path: Path, path: tuple[str, ...], is_list: bool
) -> None:
    for line in ("a\n  rules: []", "a}"):  # in a block, and within braces
        text = f"{line}\n---\n{BINDING}\n---\nkind: ConfigMap\nmetadata: {{name: y}}\ndata: "
        done = rendered(program, tmp_path, path, [text] if is_list else text)
        if done.returncode == 0:
            found = [one for one in yaml.safe_load_all(done.stdout) if one]
            names = {one["metadata"]["name"] for one in found}
            assert not names & {"x", "y"}, path


def test_namespaces_and_names_of_digits_stay_texts(program: Path, tmp_path: Path) -> None:
    for path, value in ((("watchNamespaces",), ["123", "true"]), (("ingress", "className"), "123")):
        done = rendered(program, tmp_path, path, value)
        assert done.returncode == 0, done.stderr
        for one in yaml.safe_load_all(done.stdout):
            if one:
                assert isinstance(one["metadata"].get("namespace", ""), str)
                assert isinstance(one.get("spec", {}).get("ingressClassName", ""), str)

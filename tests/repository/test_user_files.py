"""Files that other programs read: hook and action of `fairlead lint`, compose and dev container."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fairlead import __version__
from fairlead_cli.app import VERBS, build_app
from fairlead_cli.local.stack.launch import UpOptions
from fairlead_testing.yaml_documents import load_document
from scripts.release.images.components import PREFIX

ROOT = Path(__file__).parents[2]
ACTION = load_document((ROOT / "action.yml").read_text(encoding="utf-8"))
GOOD = (ROOT / "examples" / "01-smallest.yaml").read_text(encoding="utf-8")


def published_schema(name: str) -> Any:
    """Returns a schema that the package check-jsonschema brings."""
    folder = files("check_jsonschema").joinpath("builtin_schemas", "vendor")
    return json.loads(folder.joinpath(f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("action.yml", "github-actions"),
        (".github/workflows/*.yaml", "github-workflows"),
        (".github/dependabot.yml", "dependabot"),
        ("compose.yaml", "compose-spec"),
    ],
)
def test_files_have_the_form_of_their_readers(pattern: str, name: str) -> None:
    paths = sorted(ROOT.glob(pattern))
    assert paths
    for path in paths:
        # YAML 1.1 reads the key `on` as true.
        document = {"on" if key is True else key: value for key, value in load_document(path.read_text()).items()}
        jsonschema.Draft7Validator(published_schema(name)).validate(document)


def test_pre_commit_runs_lint_once_for_all_files() -> None:
    (hook,) = load_document((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert (hook["id"], hook["language"], hook["entry"]) == ("fairlead-lint", "python", "fairlead lint")
    assert hook["entry"].removeprefix("fairlead ") in VERBS
    assert hook["pass_filenames"] is False


def test_no_input_of_the_action_becomes_a_command() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize(("replicas", "code", "results"), [(1, 0, 0), (-1, 1, 1)])
def test_action_writes_findings_and_fails_on_problems(tmp_path: Path, replicas: int, code: int, results: int) -> None:
    models = tmp_path / "my models"
    models.mkdir()
    (models / "a.yaml").write_text(GOOD.replace("nvidia-l4}", f"nvidia-l4, minReplicas: {replicas}}}"))
    done = run_lint_step(tmp_path, files="\nmy models\n", sarif="found.sarif")
    assert done.returncode == code, done.stderr
    assert ("minReplicas" in done.stdout) == bool(code)
    report = json.loads((tmp_path / "found.sarif").read_text())
    assert [
        result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in report["runs"][0]["results"]
    ] == ["my%20models/a.yaml"] * results
    assert (tmp_path / "outputs").read_text() == "sarif=found.sarif\n"


def test_no_name_of_a_file_is_an_option_of_the_action(tmp_path: Path) -> None:
    (tmp_path / "--schema").write_text(GOOD)
    done = run_lint_step(tmp_path, files="--schema", sarif="found.sarif")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "found.sarif").read_text())["runs"][0]["results"] == []


def test_action_names_wrong_usage(tmp_path: Path) -> None:
    done = run_lint_step(tmp_path, files="absent", sarif="found.sarif")
    assert done.returncode == 1
    assert "no such file: absent" in done.stderr
    assert not (tmp_path / "outputs").exists()


def run_lint_step(folder: Path, *, files: str, sarif: str) -> subprocess.CompletedProcess[str]:
    """Runs the last step as a runner does. Its command is that of this environment."""
    programs = folder / "fairlead" / "bin"
    programs.mkdir(parents=True)
    command = programs / "fairlead"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fairlead_cli "$@"\n')
    command.chmod(0o755)
    step = ACTION["runs"]["steps"][-1]
    variables = {"FILES": files, "SARIF": sarif, "RUNNER_TEMP": str(folder), "GITHUB_OUTPUT": str(folder / "outputs")}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_compose_runs_the_built_image_on_loopback_ports() -> None:
    (service,) = load_document((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
    assert service["image"] == f"{PREFIX}/cli:{__version__}"
    assert service["build"] == {"context": ".", "dockerfile": "cli/Dockerfile"}
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert (service["read_only"], service["cap_drop"], service["tmpfs"]) == (True, ["ALL"], ["/tmp"])
    (mount,) = service["volumes"]
    source, target, _ = mount.split(":")
    verb, *words, file = service["command"]
    manifest = ROOT / source / Path(file).relative_to(target)
    assert manifest.is_file()
    app = build_app(arguments=[verb])
    command, bound, _ = app.parse_args([verb, *words, str(manifest)])
    assert command.__name__ == verb
    options = bound.arguments["options"]
    assert [options.listen, options.manage] == ["0.0.0.0:8000", "0.0.0.0:8001"]
    assert options.insecure
    check, *_ = service["healthcheck"]["test"][4:]
    assert f"{check} status" in VERBS


def test_dev_container_has_the_image_of_the_builds() -> None:
    described = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert f"FROM {described['image']} AS made" in (ROOT / "gateway" / "Dockerfile").read_text(encoding="utf-8")
    assert described["postCreateCommand"] == "make env"
    assert [f"127.0.0.1:{port}" for port in described["forwardPorts"]] == [UpOptions().listen, UpOptions().manage]

"""The compiled copy of simulators and autoscaler: its place, and the restart from it."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fairlead.runtime.compiled_build import COMPLETE_MARKER, compiled_copy_path
from fairlead_sim import compiled
from scripts import compile as script


def test_the_program_restarts_from_a_complete_copy_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restarts: list[Mapping[str, str]] = []
    monkeypatch.setattr(os, "execve", lambda program, arguments, environ: restarts.append(environ))
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path))
    monkeypatch.delenv("FAIRLEAD_COMPILED", raising=False)
    compiled.run_compiled()
    copy = compiled_copy_path(compiled.package_folders(), tmp_path)
    copy.mkdir()
    compiled.run_compiled()
    assert not restarts
    (copy / COMPLETE_MARKER).touch()
    compiled.run_compiled()
    monkeypatch.setenv("FAIRLEAD_COMPILED", "0")
    compiled.run_compiled()
    (environ,) = restarts
    assert environ["PYTHONPATH"].split(os.pathsep)[0] == str(copy)


def test_the_script_puts_the_copy_where_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = compiled_copy_path(compiled.package_folders(), tmp_path)
    copy.mkdir()
    (copy / COMPLETE_MARKER).touch()
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["compile.py", "--sim", "--print"])
    assert script.main() == 0
    assert capsys.readouterr().out.split() == [str(copy)]


@pytest.mark.parametrize("module", ["fairlead_autoscaler/core/decide.py", "fairlead_sim/fleet/simulation.py"])
def test_plans_and_simulated_requests_are_compiled(module: str) -> None:
    (root,) = (folder.parent for folder in compiled.package_folders() if folder.name == module.partition("/")[0])
    assert module in script.compiled_modules(root, compiled.COMPILED_MODULES)

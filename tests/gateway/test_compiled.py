"""Workers are started from the compiled copy of exactly the sources that run here, and from nothing else."""

import os
from pathlib import Path

from fairlead_gateway import compiled, forward


def test_a_complete_copy_of_these_very_sources_comes_first(tmp_path: Path) -> None:
    copy = compiled.copy_of(compiled.package_folders(), tmp_path)
    environ = {"FAIRLEAD_CACHE": str(tmp_path), "PYTHONPATH": "elsewhere"}
    assert compiled.worker_environment(environ) == environ, "there is none yet"
    copy.mkdir()
    assert compiled.worker_environment(environ) == environ, "it is not complete"
    (copy / compiled.COMPLETE).touch()
    assert compiled.worker_environment(environ)["PYTHONPATH"] == f"{copy}{os.pathsep}elsewhere"
    assert compiled.worker_environment({**environ, "FAIRLEAD_COMPILED": "0"})["PYTHONPATH"] == "elsewhere"


def test_any_change_of_a_source_makes_another_copy(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "one.py").write_text("A = 1\n")
    before = compiled.sources_digest([package])
    assert compiled.sources_digest([package]) == before
    (package / "one.py").write_text("A = 2\n")
    assert compiled.sources_digest([package]) != before
    (package / "one.py").rename(package / "two.py")
    assert len({before, compiled.sources_digest([package])}) == 2


def test_without_a_home_there_is_simply_no_copy(tmp_path: Path) -> None:
    assert "PYTHONPATH" not in compiled.worker_environment({"FAIRLEAD_CACHE": str(tmp_path / "missing")})


def test_machine_code_is_told_apart() -> None:
    assert compiled.is_compiled("/p/forward.cpython-311-x86_64-linux-gnu.so")
    assert not compiled.is_compiled("/p/forward.py")
    assert isinstance(compiled.is_compiled(forward.__file__), bool)

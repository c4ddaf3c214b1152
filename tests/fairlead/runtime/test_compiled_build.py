"""Workers use the compiled copy of exactly the running sources, and no other."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fairlead.runtime import compiled_build
from fairlead_gateway.proxy import forwarder
from fairlead_sim import compiled as compiled_sim
from scripts import compile as script


def test_complete_copy_of_these_sources_comes_first(tmp_path: Path) -> None:
    copy = compiled_build.compiled_copy_path(compiled_build.package_folders(), tmp_path)
    environ = {"FAIRLEAD_CACHE": str(tmp_path), "PYTHONPATH": "elsewhere"}
    assert compiled_build.worker_environment(environ) == environ, "there is none yet"
    copy.mkdir()
    assert compiled_build.worker_environment(environ) == environ, "it is not complete"
    (copy / compiled_build.COMPLETE_MARKER).touch()
    assert compiled_build.worker_environment(environ)["PYTHONPATH"] == f"{copy}{os.pathsep}elsewhere"
    assert compiled_build.worker_environment({**environ, "FAIRLEAD_COMPILED": "0"})["PYTHONPATH"] == "elsewhere"


def test_process_from_the_copy_stays_there(tmp_path: Path) -> None:
    copy = compiled_build.compiled_copy_path(compiled_build.package_folders(), tmp_path)
    copy.mkdir()
    (copy / compiled_build.COMPLETE_MARKER).touch()
    once = compiled_build.worker_environment({"FAIRLEAD_CACHE": str(tmp_path), "PYTHONPATH": "elsewhere"})
    assert compiled_build.worker_environment(once) == once


def test_indexer_continues_as_its_copy(tmp_path: Path) -> None:
    """The copy here is one that says so and leaves."""
    copy = compiled_build.compiled_copy_path(compiled_build.package_folders(), tmp_path)
    for folder in compiled_build.package_folders():
        shutil.copytree(folder, copy / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / compiled_build.COMPLETE_MARKER).touch()
    (copy / "fairlead_kvstore" / "indexer" / "cli.py").write_text(
        "import sys\ndef main() -> int:\n    print(sys.argv[1:])\n    return 7\n"
    )
    environ = {**os.environ, "FAIRLEAD_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "fairlead_kvstore", "--fleet", "none"]
    for wanted, code, output in (("1", 7, "['--fleet', 'none']\n"), ("0", 2, "")):
        ran = subprocess.run(
            command, env={**environ, "FAIRLEAD_COMPILED": wanted}, capture_output=True, text=True, check=False
        )
        assert (ran.returncode, ran.stdout) == (code, output)


def test_any_source_change_makes_another_copy(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "one.py").write_text("A = 1\n")
    before = compiled_build.sources_digest([package])
    assert compiled_build.sources_digest([package]) == before
    (package / "one.py").write_text("A = 2\n")
    assert compiled_build.sources_digest([package]) != before
    (package / "one.py").rename(package / "two.py")
    assert len({before, compiled_build.sources_digest([package])}) == 2
    before = compiled_build.sources_digest([package])
    (package / "loops.pyx").write_text("cdef int A = 1\n")
    assert compiled_build.sources_digest([package]) != before


@pytest.mark.parametrize(
    ("option", "module", "name", "folders"),
    [
        ("", compiled_build, "COMPILED_MODULES", compiled_build.package_folders()),
        ("--sim", compiled_sim, "COMPILED_MODULES", compiled_sim.package_folders()),
    ],
)
def test_a_changed_list_of_modules_makes_another_copy(
    option: str, module: ModuleType, name: str, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[Path, tuple[str, ...]]] = []
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda _: "a compiler")
    monkeypatch.setattr(script, "_build", lambda _, target, patterns: built.append((target, patterns)) or 0)
    monkeypatch.setattr(sys, "argv", ["compile.py", *option.split()])
    assert script.main() == 0
    (target, patterns) = built[0]
    assert patterns == getattr(module, name)
    assert target == compiled_build.compiled_copy_path(folders, tmp_path / "cache")

    own = next(folder for folder in folders if Path(module.__file__ or "").is_relative_to(folder))
    copied = shutil.copytree(own, tmp_path / own.name, ignore=shutil.ignore_patterns("__pycache__"))
    same = [copied if folder == own else folder for folder in folders]
    assert compiled_build.compiled_copy_path(same, tmp_path / "cache") == target
    source = copied / Path(module.__file__ or "").relative_to(own)
    with_one_less = source.read_text().replace(f"{name} = (", f"{name} = () and (")
    assert with_one_less != source.read_text()
    source.write_text(with_one_less)
    assert compiled_build.compiled_copy_path(same, tmp_path / "cache") != target


def test_no_home_means_no_copy(tmp_path: Path) -> None:
    assert "PYTHONPATH" not in compiled_build.worker_environment({"FAIRLEAD_CACHE": str(tmp_path / "missing")})


def test_compiled_modules_are_recognized() -> None:
    assert compiled_build.is_compiled("/p/forward.cpython-311-x86_64-linux-gnu.so")
    assert not compiled_build.is_compiled("/p/forward.py")
    assert isinstance(compiled_build.is_compiled(forwarder.__file__), bool)

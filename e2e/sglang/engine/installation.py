"""Installation of the SGLang runs in ``~/.cache/fairlead/sglang-<hash>``, made once: engine and
model.

Each package is installed by its pin, without its requirements. Those of CUDA are left out, as
`e2e/vllm/engine/installation.py` explains. The package `sglang-kernel` needs CUDA at import, so
`stand_in` has a module in its place.

Usage: ``python e2e/sglang/engine/installation.py``; prints the folder.
"""

import json
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from e2e.vllm.engine import cuda_placeholders
from e2e.vllm.engine.installation import HERE as MODEL_MAKERS
from e2e.vllm.engine.installation import Installation, install_part, locked_folder, pip_install

HERE = Path(__file__).parent
STAND_IN = HERE / "stand_in"
_REQUIREMENTS = HERE / "requirements-engine.txt"
_TINY_MODEL = MODEL_MAKERS / "tiny_model.py"
_PACKAGES = ("sglang", "torch", "transformers")
_VERSIONS = (
    "import importlib.metadata, json, sys; print(json.dumps({n: importlib.metadata.version(n) for n in sys.argv[1:]}))"
)


@dataclass(frozen=True, slots=True)
class SglangInstallation(Installation):
    """Paths of the installation."""

    def versions(self) -> dict[str, str]:
        command = [str(self.engine_python), "-c", _VERSIONS, *_PACKAGES]
        found: dict[str, str] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return found


def install() -> SglangInstallation:
    """Installs what is missing. Idempotent, and safe in several processes."""
    files = (_REQUIREMENTS, Path(__file__), _TINY_MODEL, Path(cuda_placeholders.__file__))
    with locked_folder("sglang", files) as folder:
        found = SglangInstallation(folder)
        install_part(folder, "engine", lambda: _engine(found))
    return found


def _engine(found: SglangInstallation) -> None:
    venv.create(found.folder / "engine", with_pip=True)
    pip_install(found.engine_python, "--no-deps", "-r", str(_REQUIREMENTS))
    cuda_placeholders.write_placeholders(found.engine_packages / "torch" / "lib")
    command = [str(found.engine_python), str(_TINY_MODEL), str(found.model)]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    print(install().folder)

"""Installation of the SDKs of OpenAI and Anthropic for Python and Node, made once, in
``~/.cache/fairlead/client-sdks-<hash>``.

They have environments of their own, so that another pin of an SDK does not install the engine
again. It needs Node 20 or newer, npm and the registries of both languages.
"""

import json
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from e2e.vllm.engine.installation import install_part, locked_folder, pip_install

HERE = Path(__file__).parent
_PINS = ("requirements.txt", "package.json", "package-lock.json")


@dataclass(frozen=True, slots=True)
class SdkInstallation:
    """Paths of the installation."""

    folder: Path

    def command(self, language: str) -> list[str]:
        """Returns the command that runs the checks of a language: `python` or `node`."""
        if language == "python":
            return [str(self.folder / "python" / "bin" / "python"), str(HERE / "checks.py")]
        return ["node", str(self.folder / "node" / "checks.mjs")]

    def versions(self) -> dict[str, str]:
        """Returns the versions of the SDKs."""
        pins = dict(line.split("==") for line in (HERE / "requirements.txt").read_text().splitlines() if "==" in line)
        node = json.loads((HERE / "package.json").read_text())["dependencies"]
        python = {f"{name} (Python)": pins[name] for name in ("anthropic", "openai")}
        return python | {f"{name} (Node)": version for name, version in node.items()}


def install_sdks() -> SdkInstallation:
    """Installs what is missing. Idempotent, and safe in several processes."""
    with locked_folder("client-sdks", [HERE / name for name in _PINS]) as folder:
        install_part(folder, "node", lambda: _node(folder / "node"))
        install_part(folder, "python", lambda: _python(folder / "python"))
        shutil.copy(HERE / "checks.mjs", folder / "node")  # imports are resolved from where a program lies
    return SdkInstallation(folder)


def _node(folder: Path) -> None:
    folder.mkdir()
    for name in _PINS[1:]:
        shutil.copy(HERE / name, folder)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run(command, check=True, cwd=folder, stdout=sys.stderr)


def _python(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    pip_install(folder / "bin" / "python", "--no-deps", "-r", str(HERE / "requirements.txt"))

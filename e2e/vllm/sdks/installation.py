"""Installation of the SDKs of OpenAI and Anthropic for Python and Node, made once, in
``~/.cache/fairlead/client-sdks-<hash>``.

They have environments of their own, so that another pin of an SDK does not install the engine
again. It needs Node 20 or newer, npm and the registries of both languages.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from fairlead.runtime.compiled_build import cache_folder

HERE = Path(__file__).parent
_PINS = ("requirements.txt", "package.json", "package-lock.json")
_COMPLETE = "complete"


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
    seen = hashlib.sha256(sys.version.encode())
    for name in _PINS:
        seen.update((HERE / name).read_bytes())
    cache = cache_folder(os.environ)
    cache.mkdir(parents=True, exist_ok=True)
    found = SdkInstallation(cache / f"client-sdks-{seen.hexdigest()[:12]}")
    with (cache / "client-sdks.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (found.folder / _COMPLETE).exists():
            shutil.rmtree(found.folder, ignore_errors=True)
            _install(found.folder)
        shutil.copy(HERE / "checks.mjs", found.folder / "node")  # imports are resolved from where a program lies
    return found


def _install(folder: Path) -> None:
    print(f"installing the SDKs of clients into {folder} (once) …", file=sys.stderr, flush=True)
    node = folder / "node"
    node.mkdir(parents=True)
    for name in _PINS[1:]:
        shutil.copy(HERE / name, node)
    _run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", folder=node)
    venv.create(folder / "python", with_pip=True)
    pip = (str(folder / "python" / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check")
    _run(*pip, "--no-deps", "-r", str(HERE / "requirements.txt"), folder=folder)
    (folder / _COMPLETE).touch()


def _run(*command: str, folder: Path) -> None:
    subprocess.run(command, check=True, cwd=folder, stdout=sys.stderr)

"""A virtual environment as a new user has it: nothing of this checkout, an empty search path."""

import os
import subprocess
import sys
from pathlib import Path

PASSED_ON = ("HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


class FreshEnvironment:
    """A virtual environment ``v`` below a folder. Its programs find no others: PATH is empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "path").mkdir()
        kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name in PASSED_ON}
        self.variables = kept | {"PATH": str(folder / "path"), "XDG_RUNTIME_DIR": str(folder), "PYTHONUNBUFFERED": "1"}
        base = getattr(sys, "_base_executable", sys.executable)
        subprocess.run([base, "-m", "venv", str(folder / "v")], check=True, env=self.variables)

    def program(self, name: str) -> str:
        return str(self.folder / "v" / "bin" / name)

    def pip(self, *words: str) -> None:
        done = self.run("pip", *words, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, name: str, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Runs an installed program to its end."""
        command = [self.program(name), *words]
        return subprocess.run(
            command, cwd=self.folder, env=self.variables, capture_output=True, text=True, timeout=timeout, check=False
        )

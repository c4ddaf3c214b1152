"""Builds the documentation site of this version: ``make docs``.

The tools have a lock and an environment of their own (``requirements/docs.txt``). The site is
written to ``out/site/<version>``. ``out/site/versions.json`` lists every version that is there,
for the selector at the top of each page. ``out/site/index.html`` leads to the newest one. To
publish several versions, build each release into the same ``--out``.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

from fairlead.runtime.compiled_build import cache_folder

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "docs.txt"
PIP = [
    "-m",
    "pip",
    "install",
    "-q",
    "--disable-pip-version-check",
    "--no-deps",
    "--require-hashes",
    "--only-binary",
    ":all:",
]
REDIRECT = (
    '<!doctype html><meta charset="utf-8"><title>Fairlead</title><meta http-equiv="refresh" content="0; url={0}/">'
)


def tools() -> Path:
    """Returns the interpreter of the environment that builds the site; makes it once per lock."""
    stamp = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = cache_folder(os.environ) / f"docs-{stamp}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        subprocess.run([python, *PIP, "-r", str(LOCK)], check=True)
        (folder / "complete").touch()
    return python


def version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return ".".join(project["version"].split(".")[:2])


def build(out: Path, name: str) -> int:
    """Builds one version strictly, then lists all versions below ``out``."""
    # An update notice of the theme is no warning about a page.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "true", "DISABLE_MKDOCS_2_WARNING": "true"}
    command = [tools(), "-m", "mkdocs", "build", "--clean", "--strict", "--site-dir", out / name]
    built = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment)
    if built.returncode:
        return built.returncode
    names = [path.name for path in out.iterdir() if re.fullmatch(r"\d+\.\d+", path.name)]
    names.sort(key=lambda line: tuple(map(int, line.split("."))), reverse=True)
    listed = [{"version": line, "title": line, "aliases": ["latest"] if line == names[0] else []} for line in names]
    (out / "versions.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    (out / "index.html").write_text(REDIRECT.format(names[0]), encoding="utf-8")
    print(f"{out / name / 'index.html'}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "site", help="folder of all versions")
    parser.add_argument("--version", default=version(), help="such as 0.1")
    parser.add_argument("--serve", action="store_true", help="serve the pages on loopback and follow edits")
    options = parser.parse_args()
    if options.serve:
        return subprocess.run([tools(), "-m", "mkdocs", "serve"], cwd=ROOT).returncode
    return build(options.out.resolve(), options.version)


if __name__ == "__main__":
    sys.exit(main())

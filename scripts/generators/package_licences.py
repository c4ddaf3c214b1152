"""Licences of the locked packages that Fairlead needs at run time, and the file that lists them.

The texts are those that the installed packages bring. Packages of other interpreters and systems
are not installed here: the file is made by Python 3.11 on Linux x86-64.
"""

import hashlib
import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.generators.image_locks import lock_part

FILE = "THIRD_PARTY_LICENSES"
ALLOWED = frozenset(
    (
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CC0-1.0",
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "MPL-2.0",
        "PSF-2.0",
        "Zlib",
    )
)
"""SPDX ids of licences that packages of images and of the wheel may have. MPL-2.0 asks for the
sources of changed files alone, and none is changed.
"""
_BY_PACKAGE = {
    "aiosignal": "Apache-2.0",
    "contourpy": "BSD-3-Clause",
    "cycler": "BSD-3-Clause",
    "kiwisolver": "BSD-3-Clause",
    "markdown-it-py": "MIT",
    "matplotlib": "PSF-2.0",
    "mdurl": "MIT",
    "obstore": "MIT",
    "uvloop": "MIT OR Apache-2.0",
    "valkey": "MIT",
}
"""Packages whose metadata has no SPDX expression, read from their classifiers and texts."""
_INTRODUCTION = """Licences of the packages that Fairlead needs at run time

Written by `make licenses` from requirements/dev.txt. Do not edit. The wheel contains none of these
packages; the container images contain them.

"""
_RULE = "=" * 80


@dataclass(frozen=True, slots=True)
class PackageLicence:
    """The licence of one package. texts: of its licence and notice files, by file name."""

    name: str
    version: str
    expression: str
    texts: tuple[tuple[str, str], ...]

    @property
    def line(self) -> str:
        return f"{self.name} {self.version}: {self.expression}"


def run_time_packages(root: Path) -> dict[str, set[str]]:
    """Returns name → locked versions of every package that the wheel and its extras need."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *(line for name in extras if name != "all" for line in extras[name])]
    lock = lock_part((root / "requirements" / "dev.txt").read_text(), requirements)
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==(\S+)", lock, re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def package_licences(root: Path) -> Iterator[PackageLicence]:
    """Yields the licences of the packages that are installed here, by name."""
    for name in sorted(run_time_packages(root)):
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another interpreter or system
        yield PackageLicence(name, found.version, licence_expression(name) or "unknown", tuple(_texts(found)))


def licence_expression(name: str) -> str | None:
    """Returns the SPDX expression of an installed package; None where there is none."""
    if name in _BY_PACKAGE:
        return _BY_PACKAGE[name]
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    expression, field = (metadata.json.get(name) for name in ("license_expression", "license"))
    return str(expression) if expression else (str(field) if field in ALLOWED else None)


def licence_ids(expression: str) -> set[str]:
    return {word for word in re.split(r"[\s()]+", expression) if word and word not in ("AND", "OR", "WITH")}


def licences_text(root: Path) -> str:
    """Returns the content of the file: the list of packages, then each text once."""
    packages = list(package_licences(root))
    owners: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for package in packages:
        for file, text in package.texts:
            digest = hashlib.sha256(text.encode()).hexdigest()
            texts[digest] = text
            owners.setdefault(digest, []).append(f"{package.name} ({file})")
    parts = [_INTRODUCTION, *(f"{package.line}\n" for package in packages)]
    for digest, text in texts.items():
        parts.append(f"\n{_RULE}\n{chr(10).join(owners[digest])}\n{_RULE}\n\n{text}\n")
    return "".join(parts)


def _texts(found: importlib.metadata.Distribution) -> Iterator[tuple[str, str]]:
    """Yields file name and text of the licence files in a package's metadata."""
    for file in sorted(found.files or (), key=str):
        folder, _, inside = str(file).partition(".dist-info/")
        if folder and inside and re.search(r"licen[cs]e|copying|notice", inside, re.IGNORECASE):
            text = Path(str(found.locate_file(file))).read_text(encoding="utf-8", errors="replace")
            lines = (line.rstrip() for line in text.replace("\f", "").splitlines())
            yield inside.removeprefix("licenses/"), "\n".join(lines).strip()

"""What each component's image installs: the part of ``requirements/dev.txt`` that its extra of pyproject.toml leads to, hashes kept.

Written by ``make generate`` to ``requirements/images/``; both ways of making an image read these files.
"""

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

IMAGES = {
    "autoscaler": ("autoscaler",),
    "gateway": ("gateway", "tokenize"),
    "kvstore": ("kvstore",),
    "operator": ("operator",),
    "sim": ("sim",),
}
"""Image → the extras of pyproject.toml that it has."""
_PLATFORM = {
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "python_version": "3.11",
    "python_full_version": "3.11.0",
}
"""The least that we support; what only newer interpreters do not need is there too, with its marker."""


def image_requirements(root: Path) -> dict[str, str]:
    """Path below ``root`` → the lock of one image."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    blocks = _blocks((root / "requirements" / "dev.txt").read_text())
    made = {}
    for image, extras in IMAGES.items():
        direct = [*project["dependencies"], *(one for name in extras for one in project["optional-dependencies"][name])]
        names = _closure(Requirement(line) for line in direct)
        text = "".join(blocks[name] for name in sorted(names & blocks.keys()))
        made[f"requirements/images/{image}.txt"] = (
            f"# Part of dev.txt, written by `make generate`. Do not edit.\n{text}"
        )
    return made


def _closure(direct: Iterable[Requirement]) -> set[str]:
    """Names of all that these requirements lead to, as the installed packages say."""
    seen: set[tuple[str, str]] = set()
    ahead = [(one, "") for one in direct]
    while ahead:
        requirement, because = ahead.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({**_PLATFORM, "extra": because}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                ahead += [(one, extra) for one in _requires(name)]
    return {name for name, _ in seen}


def _requires(name: str) -> list[Requirement]:
    try:
        lines = importlib.metadata.requires(name)
    except (
        importlib.metadata.PackageNotFoundError
    ):  # wanted by another interpreter than this one; such backports need nothing
        return []
    return [Requirement(line) for line in lines or []]


def _blocks(lock: str) -> dict[str, str]:
    """Name → its lines, all versions of it."""
    blocks: dict[str, str] = {}
    for found in re.finditer(r"^([a-z0-9-]+)(?:\[[^]]*\])?==.*\n(?:[ \t].*\n)*", lock, re.MULTILINE):
        blocks[found[1]] = blocks.get(found[1], "") + found[0]
    return blocks

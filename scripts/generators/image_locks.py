"""Locks of the component images: the part of ``requirements/dev.txt`` that their dependency groups
need, hashes included.

``make generate`` writes them to ``requirements/images/``; both ways of building an image use them.
"""

import importlib.metadata
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

IMAGES = ("autoscaler", "cli", "gateway", "kvstore", "operator", "sim")
"""Images; the dependency group ``image-NAME`` of pyproject.toml says what each installs."""
_PLATFORM = {
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "python_version": "3.11",
    "python_full_version": "3.11.0",
}
"""The oldest supported platform; requirements of newer interpreters keep their markers."""


def image_requirements(root: Path) -> dict[str, str]:
    """Returns path below ``root`` → lock of one image."""
    groups = tomllib.loads((root / "pyproject.toml").read_text())["dependency-groups"]
    lock = (root / "requirements" / "dev.txt").read_text()
    locks = {}
    for image in IMAGES:
        text = lock_part(lock, group_requirements(groups, f"image-{image}"))
        locks[f"requirements/images/{image}.txt"] = (
            f"# Part of dev.txt, written by `make generate`. Do not edit.\n{text}"
        )
    return locks


def lock_part(lock: str, requirements: Iterable[str]) -> str:
    """Returns the lines of a lock that requirements need, directly or not."""
    blocks = _blocks(lock)
    names = _closure(Requirement(line) for line in requirements)
    return "".join(blocks[name] for name in sorted(names & blocks.keys()))


def group_requirements(groups: Mapping[str, list[str | dict[str, str]]], name: str) -> Iterator[str]:
    """Yields the requirements of a dependency group, with those of the groups that it includes."""
    for entry in groups[name]:
        if isinstance(entry, str):
            yield entry
        else:
            yield from group_requirements(groups, entry["include-group"])


def _closure(requirements: Iterable[Requirement]) -> set[str]:
    """Returns the names of all direct and transitive requirements, by the installed packages'
    metadata.
    """
    visited: set[tuple[str, str]] = set()
    pending = [(requirement, "") for requirement in requirements]
    while pending:
        requirement, extra_name = pending.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({**_PLATFORM, "extra": extra_name}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in visited:
                visited.add((name, extra))
                pending += [(requirement, extra) for requirement in _requires(name)]
    return {name for name, _ in visited}


def _requires(name: str) -> list[Requirement]:
    try:
        lines = importlib.metadata.requires(name)
    except (
        importlib.metadata.PackageNotFoundError
    ):  # wanted by another interpreter than this one; such backports need nothing
        return []
    return [Requirement(line) for line in lines or []]


def _blocks(lock: str) -> dict[str, str]:
    """Returns name → its lines, all versions of it."""
    blocks: dict[str, str] = {}
    for match in re.finditer(r"^([a-z0-9-]+)(?:\[[^]]*\])?==.*\n(?:[ \t].*\n)*", lock, re.MULTILINE):
        blocks[match[1]] = blocks.get(match[1], "") + match[0]
    return blocks

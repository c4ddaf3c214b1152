"""Texts of a release: its notes, from the changelog, and the licences of others' packages."""

import re
from collections.abc import Iterator
from pathlib import Path

from scripts.generators.package_licences import ALLOWED as ALLOWED_LICENCES
from scripts.generators.package_licences import FILE, licence_ids
from scripts.release.release_run import ReleaseError, ReleaseRun

NOTES = "RELEASE_NOTES.md"
UNRELEASED = "Unreleased"


def write_texts(run: ReleaseRun) -> Iterator[Path]:
    """Writes the notes, LICENSE, NOTICE and the licences of the packages that Fairlead needs."""
    notes = run.folder / NOTES
    notes.write_text(release_notes((run.root / "CHANGELOG.md").read_text(), run.version))
    yield notes
    for name in ("LICENSE", "NOTICE", FILE):
        copy = run.folder / name
        copy.write_bytes((run.root / name).read_bytes())
        yield copy
    refused = refused_licences((run.root / FILE).read_text())
    if refused:
        raise ReleaseError(f"licences that are not allowed: {', '.join(refused)}")


def release_notes(changelog: str, version: str) -> str:
    """Returns what the changelog says of a version, else of what is not released.

    Links to files of the repository become plain text: the notes are read elsewhere.
    """
    sections = dict(re.findall(r"^## \[?([^\]\s]+)\]?[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL))
    body = sections.get(version) or sections.get(UNRELEASED)
    if not body or not body.strip():
        raise ReleaseError(f"CHANGELOG.md has no section for {version} and none that is called {UNRELEASED}")
    plain = re.sub(r"\[([^\]]+)\]\((?!https?://)[^)]*\)", r"\1", body)
    return f"# Fairlead {version}\n\n{plain.strip()}\n"


def refused_licences(text: str) -> list[str]:
    """Returns the lines of the list of packages whose licences are not allowed."""
    lines = re.findall(r"^([a-z0-9-]+ \S+): (.+)$", text.partition("=" * 80)[0], re.MULTILINE)
    return [f"{package}: {expression}" for package, expression in lines if licence_ids(expression) - ALLOWED_LICENCES]

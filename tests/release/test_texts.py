"""Release notes from the changelog."""

import re

import pytest

from fairlead import __version__
from scripts.release.artefacts import release_notes
from scripts.release.release_run import ROOT, ReleaseError

CHANGELOG = """# Changelog

## [Unreleased]

### Added

- New ([how](docs/how-to/new.md), [why](https://example.org/why)).

## [0.2.0] - 2027-01-01

### Fixed

- Old.
"""


def test_notes_are_the_section_of_the_version() -> None:
    assert release_notes(CHANGELOG, "0.2.0") == "# Fairlead 0.2.0\n\n### Fixed\n\n- Old.\n"


def test_notes_before_a_release_are_what_is_not_released() -> None:
    notes = release_notes(CHANGELOG, "0.3.0")
    assert notes == "# Fairlead 0.3.0\n\n### Added\n\n- New (how, [why](https://example.org/why)).\n"


def test_a_changelog_without_the_version_is_refused() -> None:
    with pytest.raises(ReleaseError, match=r"has no section for 1\.0"):
        release_notes("# Changelog\n", "1.0")


def test_the_changelog_has_notes_for_this_release() -> None:
    notes = release_notes((ROOT / "CHANGELOG.md").read_text(), __version__)
    assert len(notes) > 1_000
    assert re.findall(r"\]\((?!https?://)", notes) == []


def test_an_entry_of_the_changelog_has_at_most_two_sentences() -> None:
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", "X", (ROOT / "CHANGELOG.md").read_text())
    entries = re.findall(r"^- (.*(?:\n  .*)*)", text, re.MULTILINE)
    assert len(entries) > 50
    assert [entry for entry in entries if len(re.split(r"\.\s+(?=[A-Z\[])", entry)) > 2] == []


def test_the_changelog_keeps_the_form_of_keep_a_changelog() -> None:
    headings = re.findall(r"^(#{1,3}) (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == ("#", "Changelog")
    for level, name in headings[1:]:
        if level == "##":
            assert re.fullmatch(r"\[Unreleased\]|\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", name), name
        else:
            assert name in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"), name

"""Licences of others' packages: only known ones, and the file that lists them is up to date."""

import re
import sys
import sysconfig

import pytest

from scripts.generators.package_licences import (
    ALLOWED,
    FILE,
    licence_ids,
    licences_text,
    package_licences,
    run_time_packages,
)
from scripts.release.artefacts import refused_licences
from scripts.release.release_run import ROOT

TEXT = (ROOT / FILE).read_text()
LISTED = dict(re.findall(r"^([a-z0-9-]+) (\S+): .+$", TEXT.partition("=" * 80)[0], re.MULTILINE))
NOT_INSTALLED = {"async-timeout"}
"""Packages of the lock for interpreters that Fairlead's images do not have."""
IS_REFERENCE = sys.version_info[:2] == (3, 11) and sysconfig.get_platform() == "linux-x86_64"
"""The file is made on this platform; wheels of others bring other texts."""


def test_every_package_has_an_allowed_licence() -> None:
    refused = {package.line for package in package_licences(ROOT) if licence_ids(package.expression) - ALLOWED}
    assert refused == set()
    assert refused_licences(TEXT) == []


def test_the_file_lists_the_packages_of_the_lock() -> None:
    locked = run_time_packages(ROOT)
    assert locked.keys() - LISTED.keys() == NOT_INSTALLED, "run `make licenses`"
    assert {name for name, version in LISTED.items() if version not in locked[name]} == set(), "run `make licenses`"


def test_the_file_has_the_texts_of_the_installed_packages() -> None:
    if IS_REFERENCE:
        assert licences_text(ROOT) == TEXT, "run `make licenses`"
    else:
        assert all(package.name in LISTED for package in package_licences(ROOT))


@pytest.mark.parametrize("expression", ["GPL-3.0-only", "MIT AND AGPL-3.0-or-later", "unknown"])
def test_a_licence_that_is_not_allowed_is_named(expression: str) -> None:
    assert refused_licences(f"good 1.0: MIT\nbad-one 2.0: {expression}\n") == [f"bad-one 2.0: {expression}"]

"""Fixtures of tests of fleet files."""

from collections.abc import Callable

import pytest

from fairlead.errors import FileProblem, ManifestError
from fairlead.fleet.file.format import parse_fleet_file


@pytest.fixture
def first_problem() -> Callable[[str], FileProblem]:
    """Returns the first problem of a fleet file that must have one."""

    def find(text: str) -> FileProblem:
        with pytest.raises(ManifestError) as refused:
            parse_fleet_file(text, file="f")
        return refused.value.problems[0]

    return find

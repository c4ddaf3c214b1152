"""Modules that a verb loads at its start: the types of the API take as long as all the rest."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("verb", ["audit", "index"])
def test_verb_without_manifests_does_not_load_their_types(verb: str) -> None:
    program = (
        f"import sys, fairlead_cli.{verb}.command; print(*{{'pydantic', 'fairlead_autoscaler'}} & sys.modules.keys())"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []

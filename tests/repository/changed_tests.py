"""The test files that a change can reach: what ``make test CHANGED=1`` runs.

    changed_tests.py [REVISION]    print them; the change is what differs from REVISION (HEAD)

A test reaches what it imports, what that imports, and modules whose names are strings in any of
these, as those of programs are. A file that is no Python reaches the tests whose own text, or that
of their helpers, names its folder. Whatever the change, the rules of the repository are tested.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from repository_rules import PACKAGES, ROOT

ALWAYS = ("tests/repository/test_rules.py",)
FIXTURES = "tests/conftest.py"
FOR_ALL = ("pyproject.toml", "requirements/", FIXTURES, "testing/fairlead_testing/pytest_hooks/")
"""Files that every test depends on. Imports of the fixtures are not counted for each test."""
_PACKAGES = {Path(package).name: ROOT / Path(package).parent for package in PACKAGES} | {
    "fairlead_testing": ROOT / "testing",
    "fairlead_bench": ROOT / "bench",
    "e2e": ROOT,
    "scripts": ROOT,
}
_IMPORT = re.compile(r"^ *(?:from +([\w.]+) +import +(\([^)]*\)|[^\n]*)|import +([\w.]+))", re.MULTILINE)
_STRING = re.compile(rf"[\"']((?:{'|'.join(_PACKAGES)})(?:\.\w+)*)[\"']")


def changed_files(revision: str) -> set[str]:
    """Returns the files that differ from a revision, and those that git does not know yet."""
    listings = (["diff", "--name-only", revision], ["ls-files", "--others", "--exclude-standard"])
    outputs = (
        subprocess.run(["git", *listing], cwd=ROOT, check=True, capture_output=True, text=True) for listing in listings
    )
    return {line for output in outputs for line in output.stdout.splitlines()}


def reachable_tests(changed: set[str]) -> list[str]:
    """Returns the files of tests that a change of these files can reach."""
    tests = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "tests").rglob("test_*.py"))]
    if any(name.startswith(FOR_ALL) for name in changed):
        return tests
    users = _users(tuple(tests))
    folders = {name.partition("/")[0] for name in changed if not name.endswith((".py", ".pyx"))}
    reached = _closure(changed | _helpers_that_name(folders, users), users)
    return [test for test in tests if test in ALWAYS or test in reached]


@cache
def _users(tests: tuple[str, ...]) -> dict[str, set[str]]:
    """Returns, for each file that a test reaches, the files that name it."""
    users: dict[str, set[str]] = {test: set() for test in tests}
    pending = list(tests)
    while pending:
        name = pending.pop()
        for used in _used_files(name):
            if used not in users:
                users[used] = set()
                pending.append(used)
            users[used].add(name)
    return users


def _closure(names: set[str], users: dict[str, set[str]]) -> set[str]:
    reached, pending = set(names), list(names)
    while pending:
        new = users.get(pending.pop(), set()) - reached
        reached |= new
        pending += new
    return reached


def _helpers_that_name(folders: set[str], users: dict[str, set[str]]) -> set[str]:
    """Returns the tests, and helpers of tests, in whose text one of the folders stands."""
    quoted = re.compile(rf"[\"'/](?:{'|'.join(map(re.escape, sorted(folders)))})[\"'/]")
    helpers = (name for name in users if name.startswith(("tests/", "testing/")))
    return {name for name in helpers if folders and quoted.search((ROOT / name).read_text(encoding="utf-8"))}


def _used_files(name: str) -> set[str]:
    """Returns the files whose modules a file names, and the conftest files of a test."""
    if name == FIXTURES:
        return set()
    text = (ROOT / name).read_text(encoding="utf-8")
    modules = set(_imported_modules(text)) | set(_STRING.findall(text))
    files = {file for module in modules for file in _files_of(module)}
    if name.startswith("tests/"):
        files |= {file for module in {*modules, "conftest"} for file in _siblings((ROOT / name).parent, module)}
    return files


def _imported_modules(text: str) -> Iterator[str]:
    """Yields what a file imports; names of a module, too, since they may be modules."""
    for origin, names, module in _IMPORT.findall(text):
        yield module or origin
        yield from (f"{origin}.{name.split()[0]}" for name in names.strip("()").split(",") if name.split())


@cache
def _files_of(module: str) -> tuple[str, ...]:
    """Returns the files of a dotted name: of its packages, the module, and the program."""
    parts = module.split(".")
    folder = _PACKAGES.get(parts[0])
    if folder is None:
        return ()
    candidates: list[Path] = []
    for part in parts:
        folder /= part
        candidates += (folder / "__init__.py", folder.with_suffix(".py"), folder.with_suffix(".pyx"))
    candidates.append(folder / "__main__.py")
    return tuple(file.relative_to(ROOT).as_posix() for file in candidates if file.exists())


@cache
def _siblings(folder: Path, module: str) -> tuple[str, ...]:
    """Returns the helpers of this name in the folder of a test, or above it."""
    if module.partition(".")[0] in {*_PACKAGES, *sys.stdlib_module_names}:
        return ()
    file = Path(*module.split(".")).with_suffix(".py")
    places = (above / file for above in (folder, *folder.parents) if above.is_relative_to(ROOT / "tests"))
    return tuple(path.relative_to(ROOT).as_posix() for path in places if path.exists())


if __name__ == "__main__":
    for reached_test in reachable_tests(changed_files(*(sys.argv[1:] or ["HEAD"]))):
        print(reached_test)

"""``fairlead lint FILE``: checks manifests and fleet files without a cluster; every finding has line, field and fix.

Files are told apart by what they hold: a mapping with ``models`` and without ``kind`` is a fleet file. All manifests of one call
are checked together, so that a pool may name an AcceleratorClass of another file.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairlead.errors import BadInput, FileProblem, ManifestError
from fairlead.fleet import file as fleetfile
from fairlead.limits import Limits
from fairlead.manifests import loader
from fairlead.manifests.yaml_nodes import parse_documents
from fairlead_cli.manifest_arguments import collect_paths

MAX_SHOWN = 50
"""Findings printed; what lies behind is counted. Nobody reads more before the first ones are mended."""


def lint(
    *files: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="Files, folders of YAML files, or - for standard input.")
    ],
    file: Annotated[
        list[str] | None, Parameter(name=["--file", "-f"], allow_leading_hyphen=True, help="The same, as for kubectl.")
    ] = None,
) -> int:
    """Check manifests and fleet files without a cluster.

    Exit code 0: no problem; 1: problems, each with line, field and fix; 2: wrong usage. A note is no problem: what it stands on
    is right, and may not do what was meant.
    """
    paths = collect_paths(lint, files, file)
    if not paths:
        raise BadInput("no file was given", field="FILES", hint="fairlead lint FILE, or - for standard input")
    for path in paths:
        if path != loader.STDIN_PATH and not Path(path).exists():
            raise BadInput(f"no such file: {path}", field="FILES")
    problems, counts = lint_paths(paths)
    for problem in problems[:MAX_SHOWN]:
        print(problem)
    if len(problems) > MAX_SHOWN:
        print(f"… and {len(problems) - MAX_SHOWN:,} more")
    if problems:
        where = len({problem.file for problem in problems})
        print(f"\n{_count(len(problems), 'problem')} in {_count(where, 'file')}", file=sys.stderr)
        return 1
    for line in counts:
        print(line)
    return 0


def lint_paths(paths: Iterable[str]) -> tuple[list[FileProblem], list[str]]:
    """Every problem in the order of the files; and, of files that are right, notes and a line on what they hold."""
    limits = Limits()
    texts, problems = loader.read_texts(list(paths), limits=limits)
    objects: list[tuple[str, str]] = []
    counts: list[str] = []
    for name, text in texts:
        if not _is_fleet_file(name, text, limits):
            objects.append((name, text))
            continue
        try:
            fleet = fleetfile.parse_fleet_file(text, file=name, limits=limits)
        except ManifestError as error:
            problems += error.problems
            continue
        instances = sum(len(members) for members in fleet.instances.values())
        counts.append(f"{name}: ok, a fleet of {_count(len(fleet.models), 'model')} on {_count(instances, 'instance')}")
    found, more = loader.combine_texts(objects, limits=limits, complete=not problems)
    counts += map(str, found.notes)
    if objects:
        names = objects[0][0] if len(objects) == 1 else _count(len(objects), "file")
        counts.append(f"{names}: ok, {_count(len(found.models), 'ModelDeployment')}")
    order = {name: position for position, (name, _) in enumerate(texts)}
    return sorted(problems + more, key=lambda problem: order.get(problem.file, -1)), counts


def _is_fleet_file(name: str, text: str, limits: Limits) -> bool:
    """A file that is no YAML at all is left to the manifest reader, which says what is wrong."""
    try:
        nodes = parse_documents(text, file=name, limits=limits)
    except ManifestError:
        return False
    return (
        bool(nodes) and isinstance(nodes[0].value, dict) and "models" in nodes[0].value and "kind" not in nodes[0].value
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")

"""Manifest lint."""

from collections.abc import Iterable

from fairlead.errors import FileProblem, ManifestError
from fairlead.fleet import file as fleetfile
from fairlead.limits import Limits
from fairlead.manifests import loader
from fairlead.manifests.yaml_nodes import parse_documents


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

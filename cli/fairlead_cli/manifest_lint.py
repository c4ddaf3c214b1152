"""Checks manifests and fleet files without a cluster; every problem has a file, a line, a field and
a fix.

A file is a fleet file when it is a mapping with ``models`` and without ``kind``. Files of a folder
that hold no Kubernetes object are skipped with a note. All manifests of one call are checked
together, so that a pool may refer to an AcceleratorClass of another file.
"""

from collections.abc import Iterable
from dataclasses import replace

from fairlead.errors import FileProblem, ManifestError
from fairlead.fleet import file as fleetfile
from fairlead.limits import Limits
from fairlead.manifests import loader
from fairlead.manifests.files import read_texts
from fairlead.manifests.skipped_files import is_fleet_document, skip_files
from fairlead.manifests.yaml_nodes import parse_documents


def lint_paths(paths: Iterable[str]) -> tuple[list[FileProblem], list[str]]:
    """Returns all problems in the order of the files; and, for valid files, notes and a line on
    their contents.
    """
    limits = Limits()
    every = list(paths)
    texts, problems = read_texts(every, limits=limits)
    texts, skipped = skip_files(texts, every, limits=limits)
    objects: list[tuple[str, str]] = []
    remarks = [str(replace(one, message=f"note: {one.message}")) for one in skipped]
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
        remarks.append(
            f"{name}: ok, a fleet of {_count(len(fleet.models), 'model')} on {_count(instances, 'instance')}"
        )
    found, more = loader.combine_texts(objects, limits=limits, complete=not problems)
    remarks += map(str, found.notes)
    if objects:
        names = objects[0][0] if len(objects) == 1 else _count(len(objects), "file")
        remarks.append(f"{names}: ok, {_objects(found)}")
    order = {name: position for position, (name, _) in enumerate(texts)}
    return sorted(problems + more, key=lambda problem: order.get(problem.file, -1)), remarks


def _objects(manifests: loader.Manifests) -> str:
    counts = [_count(len(manifests.models), "ModelDeployment")]
    if manifests.tenants:
        counts.append(_count(len(manifests.tenants), "ModelTenant"))
    if manifests.routes:
        counts.append(_count(len(manifests.routes), "ModelRoute"))
    if manifests.adapters:
        counts.append(_count(len(manifests.adapters), "ModelAdapter"))
    return ", ".join(counts)


def _is_fleet_file(name: str, text: str, limits: Limits) -> bool:
    """Whether this is a fleet file. A file that is not YAML goes to the manifest reader, which
    reports it.
    """
    try:
        nodes = parse_documents(text, file=name, limits=limits)
    except ManifestError:
        return False
    return bool(nodes) and is_fleet_document(nodes[0])


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")

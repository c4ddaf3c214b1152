"""Files of a folder that hold no Kubernetes object, such as the values of a Helm chart.

A file is skipped if the call named its folder, not the file itself, and if another file of the
call holds an object. Templates that have not been rendered count as such files.

Why: charts and Kustomize keep these files in the folders of manifests. A file that is named is
meant as a manifest, so it keeps its errors. A call without any object has checked nothing.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from fairlead.api.kinds import served_kinds
from fairlead.api.v1alpha1 import API_VERSION
from fairlead.errors import FileProblem, ManifestError
from fairlead.limits import Limits
from fairlead.manifests.yaml_nodes import UNRENDERED_TEMPLATE, YamlNode, parse_documents

API_GROUP = API_VERSION.partition("/")[0]


def skip_files(
    texts: Iterable[tuple[str, str]], paths: Sequence[str | Path], *, limits: Limits
) -> tuple[list[tuple[str, str]], list[FileProblem]]:
    """Returns the (file, text) to check, and for each skipped file the reason.

    paths: the files and folders of the call.
    """
    every = list(texts)
    named = {Path(path) for path in paths}
    if all(Path(file) in named for file, _ in every):
        return every, []
    reasons: dict[str, FileProblem] = {}
    has_object = False
    for file, text in every:
        reason = _reason_to_skip(file, text, limits)
        if reason is not None and Path(file) not in named:
            reasons[file] = reason
        has_object = has_object or reason is None
    if not has_object:
        return every, []
    return [(file, text) for file, text in every if file not in reasons], list(reasons.values())


def is_fleet_document(node: YamlNode) -> bool:
    return isinstance(node.value, dict) and "models" in node.value and "kind" not in node.value


def known_kinds() -> set[str]:
    return {kind.name for kind in served_kinds()}


def _reason_to_skip(file: str, text: str, limits: Limits) -> FileProblem | None:
    """Returns None for a file that may hold an object; also for one that is not YAML."""
    try:
        nodes = parse_documents(text, file=file, limits=limits)
    except ManifestError as error:
        (problem, *_) = error.problems
        if problem.message != UNRENDERED_TEMPLATE:
            return None
        return FileProblem(file, problem.line, "(file)", f"skipped: {problem.message}", problem.fix)
    if any(_is_object(node) or is_fleet_document(node) for node in nodes):
        return None
    if not nodes:
        return FileProblem(file, 1, "(file)", "skipped: the file is empty", "leave it, or remove it")
    fix = "leave it, or move it: `kubectl apply -f FOLDER` refuses it"
    return FileProblem(file, nodes[0].line, "(file)", "skipped: the file holds no Kubernetes object", fix)


def _is_object(node: YamlNode) -> bool:
    """Returns True for a Kubernetes object, also for one of Fairlead that lacks a required field of
    its head.
    """
    if not isinstance(node.value, dict):
        return False
    version, kind = (node.value[name].value if name in node.value else None for name in ("apiVersion", "kind"))
    if isinstance(version, str) and (isinstance(kind, str) or version.partition("/")[0] == API_GROUP):
        return True
    return (isinstance(kind, str) and kind in known_kinds()) or {"metadata", "spec"} <= node.value.keys()

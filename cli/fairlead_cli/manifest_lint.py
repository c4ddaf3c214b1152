"""Checks manifests and fleet files without a cluster; every problem has a file, a line, a field and
a fix.

A file is a fleet file when it is a mapping with ``models`` and without ``kind``. Files of a folder
that hold no Kubernetes object are skipped with a note. All manifests of one call are checked
together, so that a pool may refer to an AcceleratorClass of another file.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from cyclopts import Parameter

from fairlead import __version__
from fairlead.api.manifest_schema import manifest_schema
from fairlead.errors import BadInput, FileProblem, ManifestError
from fairlead.fleet import file as fleetfile
from fairlead.limits import Limits
from fairlead.manifests import loader
from fairlead.manifests.files import STDIN_PATH, read_texts, unread_folders
from fairlead.manifests.skipped_files import is_fleet_document, skip_files
from fairlead.manifests.yaml_nodes import parse_documents
from fairlead.names import suggest_fix
from fairlead_cli.formatting import pluralize
from fairlead_cli.output import format_document, is_document
from fairlead_cli.rendered_pods import lint_pods

Files = Annotated[
    str, Parameter(allow_leading_hyphen=True, help="Files, folders of YAML files, or - for standard input.")
]
MoreFiles = Annotated[
    list[str] | None,
    Parameter(name=["--file", "-f"], allow_leading_hyphen=True, help="More FILES, given as with kubectl."),
]
MAX_SHOWN = 50
"""Problems printed without ``-o wide``; the rest is counted."""
LintFormat = Literal["table", "wide", "json", "yaml", "sarif"]
SARIF_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_NOTE: Final = "note: "


@dataclass(frozen=True, slots=True)
class LintReport:
    """The findings in files: problems and notes with places, and a line on what is valid."""

    problems: list[FileProblem]
    notes: list[FileProblem]
    contents: list[str]

    @property
    def remarks(self) -> list[str]:
        return [*map(str, self.notes), *self.contents]


def lint(
    *files: Files,
    file: MoreFiles = None,
    output: Annotated[
        LintFormat,
        Parameter(
            name=["--output", "-o"], help="Text; wide: with all problems; or problems and notes as JSON, YAML or SARIF."
        ),
    ] = "table",
    schema: Annotated[
        bool, Parameter(negative="", help="Print the JSON schema of manifests, and check nothing.")
    ] = False,
) -> int:
    """Check manifests and fleet files without a cluster.

    Exits 0 without a problem, 1 with problems, each with line, field and fix, and 2 on wrong usage.
    A note is no problem: the field is valid, and may not have the intended effect. Pods of models
    are checked as the operator renders them, with its own fields and those of the template.

    In a folder, files without a Kubernetes object are skipped with a note. Such files are values
    of Helm charts, unrendered templates and empty files. It is an error if no file has an object.
    Folders in a folder are not read, with a note: name each of them.

    SARIF is what code hosts show at the lines of a change. Editors check and complete fields with
    the schema of --schema: `fairlead lint --schema > fairlead.schema.json`.
    """
    paths = collect_paths(lint, files, file)
    if schema:
        if paths:
            raise BadInput(
                "--schema takes no files", field="--schema", hint="fairlead lint --schema > fairlead.schema.json"
            )
        print(format_document(manifest_schema(), "json"))
        return 0
    if not paths:
        raise BadInput("no file was given", field="FILES", hint="fairlead lint FILE, or - for standard input")
    for path in paths:
        if path != STDIN_PATH and not Path(path).exists():
            raise BadInput(f"no such file: {path}", field="FILES")
    report = lint_paths(paths)
    problems = report.problems
    if output == "sarif":
        print(format_document(_sarif_report(report), "json"))
        return 1 if problems else 0
    if is_document(output):
        print(format_document(_report(report), output))
        return 1 if problems else 0
    shown = problems if output == "wide" else problems[:MAX_SHOWN]
    for problem in shown:
        print(problem)
    if len(problems) > len(shown):
        print(f"… and {len(problems) - len(shown):,} more: -o wide")
    if problems:
        where = len({problem.file for problem in problems})
        print(f"\n{pluralize(len(problems), 'problem')} in {pluralize(where, 'file')}", file=sys.stderr)
        return 1
    for line in report.remarks:
        print(line)
    return 0


def _report(report: LintReport) -> dict[str, Any]:
    return {"problems": report.problems, "notes": [_without_mark(note) for note in report.notes]}


def _sarif_report(report: LintReport) -> dict[str, Any]:
    """Returns a log of SARIF 2.1.0 with one run. A rule is a field, without the places in lists."""
    found = [("error", problem) for problem in report.problems]
    found += [("note", _without_mark(note)) for note in report.notes]
    results = [
        {
            "ruleId": re.sub(r"\[[^]]*]", "", problem.field),
            "level": level,
            "message": {"text": f"{problem.field}: {problem.message}" + (f" ({problem.fix})" if problem.fix else "")},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": quote(problem.file)},
                        "region": {"startLine": problem.line},
                    }
                }
            ],
        }
        for level, problem in found
    ]
    rules = [{"id": name} for name in sorted({str(result["ruleId"]) for result in results})]
    driver = {"name": "fairlead lint", "version": __version__, "rules": rules}
    return {"version": "2.1.0", "$schema": SARIF_SCHEMA, "runs": [{"tool": {"driver": driver}, "results": results}]}


def _without_mark(note: FileProblem) -> FileProblem:
    return replace(note, message=note.message.removeprefix(_NOTE))


def lint_paths(paths: Iterable[str]) -> LintReport:
    """Returns all problems in the order of the files; and, of valid files, notes and contents."""
    limits = Limits()
    every = list(paths)
    texts, problems = read_texts(every, limits=limits)
    texts, skipped = skip_files(texts, every, limits=limits)
    objects: list[tuple[str, str]] = []
    notes = [replace(one, message=f"{_NOTE}{one.message}") for one in (*skipped, *unread_folders(every))]
    contents: list[str] = []
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
        contents.append(
            f"{name}: ok, a fleet of {pluralize(len(fleet.models), 'model')} on {pluralize(instances, 'instance')}"
        )
    found, more = loader.combine_texts(objects, limits=limits, complete=not problems, lint_pods=lint_pods)
    notes += found.notes
    if objects:
        names = objects[0][0] if len(objects) == 1 else pluralize(len(objects), "file")
        contents.append(f"{names}: ok, {_objects(found)}")
    order = {name: position for position, (name, _) in enumerate(texts)}
    problems = sorted(problems + more, key=lambda problem: order.get(problem.file, -1))
    return LintReport(problems, notes, contents)


def _objects(manifests: loader.Manifests) -> str:
    others = {"ModelTenant": manifests.tenants, "ModelRoute": manifests.routes, "ModelAdapter": manifests.adapters}
    counts = {"ModelDeployment": len(manifests.models)} | {kind: len(found) for kind, found in others.items() if found}
    return ", ".join(pluralize(count, kind) for kind, count in counts.items())


def _is_fleet_file(name: str, text: str, limits: Limits) -> bool:
    """Whether this is a fleet file. A file that is not YAML goes to the manifest reader, which
    reports it.
    """
    try:
        nodes = parse_documents(text, file=name, limits=limits)
    except ManifestError:
        return False
    return bool(nodes) and is_fleet_document(nodes[0])


def collect_paths(
    command: Callable[..., Any], arguments: Sequence[str], option_values: Sequence[str] | None
) -> tuple[str, ...]:
    """Returns all paths in order. Raises BadInput for a word that looks like an option of
    ``command``.

    Why: the parser passes words with a leading hyphen as files, because it would refuse ``-``
    otherwise.
    """
    for argument in arguments:
        if argument.startswith("-") and argument != STDIN_PATH:
            hint = suggest_fix(argument, _options(command), f"fairlead {command.__name__} --help lists the options")
            raise BadInput(f"unknown option: {argument}", field=argument, hint=hint)
    return (*arguments, *(option_values or ()))


def _options(command: Callable[..., Any]) -> list[str]:
    names: list[str] = []
    for parameter in inspect.signature(command).parameters.values():
        if is_dataclass(parameter.default):
            names += [field.name for field in fields(parameter.default)]
        elif parameter.kind is parameter.KEYWORD_ONLY:
            names.append(parameter.name)
    return [f"--{name.replace('_', '-')}" for name in names]

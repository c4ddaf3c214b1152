"""``fairlead lint FILE``: checks manifests and fleet files without a cluster."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead.manifests.files import STDIN_PATH
from fairlead_cli.manifest_arguments import collect_paths
from fairlead_cli.manifest_lint import _count, lint_paths

MAX_SHOWN = 50
"""Problems printed; the rest is counted."""


def lint(
    *files: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="Files, folders of YAML files, or - for standard input.")
    ],
    file: Annotated[
        list[str] | None,
        Parameter(name=["--file", "-f"], allow_leading_hyphen=True, help="More FILES, given as with kubectl."),
    ] = None,
) -> int:
    """Check manifests and fleet files without a cluster.

    Exits 0 without a problem, 1 with problems, each with line, field and fix, and 2 on wrong usage.
    A note is no problem: the field is valid, and may not have the intended effect.

    In a folder, files without a Kubernetes object are skipped with a note. Such files are values
    of Helm charts, unrendered templates and empty files. It is an error if no file has an object.
    """
    paths = collect_paths(lint, files, file)
    if not paths:
        raise BadInput("no file was given", field="FILES", hint="fairlead lint FILE, or - for standard input")
    for path in paths:
        if path != STDIN_PATH and not Path(path).exists():
            raise BadInput(f"no such file: {path}", field="FILES")
    problems, remarks = lint_paths(paths)
    for problem in problems[:MAX_SHOWN]:
        print(problem)
    if len(problems) > MAX_SHOWN:
        print(f"… and {len(problems) - MAX_SHOWN:,} more")
    if problems:
        where = len({problem.file for problem in problems})
        print(f"\n{_count(len(problems), 'problem')} in {_count(where, 'file')}", file=sys.stderr)
        return 1
    for line in remarks:
        print(line)
    return 0

"""``fairlead lint FILE``: checks manifests and fleet files without a cluster; every finding has line, field and fix.

Files are told apart by what they hold: a mapping with ``models`` and without ``kind`` is a fleet file. All manifests of one call
are checked together, so that a pool may name an AcceleratorClass of another file.
"""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead.manifests import loader
from fairlead_cli.manifest_arguments import collect_paths
from fairlead_cli.manifest_lint import _count, lint_paths

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

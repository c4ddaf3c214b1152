"""Writes the golden files of ``tests/operator/render/cases`` and ``tests/cli/migration/manifests``,
and of ``tests/charts/values`` when helm is installed.

Read every line of the difference before you commit it. Only the present render version is written:
files of older versions pin what existing engines run with, and never change.
"""

import sys
from pathlib import Path

from fairlead_operator.render import CURRENT_VERSION, render_model
from fairlead_testing.cli.golden_conversions import golden_conversions
from fairlead_testing.kube import helm as chart
from fairlead_testing.kube.api_server import NO_CLUSTER_PROGRAMS
from fairlead_testing.kube.render_cases import default_context, golden_text, read_case

TESTS = Path(__file__).resolve().parent.parent / "tests"
FOLDER = TESTS / "operator" / "render"


def main() -> int:
    """Returns 0, or 1 for a case with problems."""
    target = FOLDER / "golden" / f"v{CURRENT_VERSION}"
    target.mkdir(parents=True, exist_ok=True)
    for case in sorted((FOLDER / "cases").glob("*.yaml")):
        model, classes = read_case(case)
        rendered = render_model(model, classes, default_context())
        for problem in rendered.problems:
            print(f"{case.name}: {problem.message_with_fix}", file=sys.stderr)
            return 1
        (target / case.name).write_text(golden_text(rendered.manifests), encoding="utf-8")
    for path, text in golden_conversions(TESTS / "cli" / "migration"):
        path.write_text(text, encoding="utf-8")
    helm = chart.helm_program()
    if helm is None:
        print(NO_CLUSTER_PROGRAMS, file=sys.stderr)
        return 1
    for case in sorted((TESTS / "charts" / "values").glob("*.yaml")):
        text = chart.golden_text(chart.render_chart(helm, f"--values={case}"))
        (TESTS / "charts" / "golden" / case.name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

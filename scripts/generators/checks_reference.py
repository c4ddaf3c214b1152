"""docs/reference/checks.md: the checks of ``fairlead check``, from the catalogue."""

from itertools import groupby

from fairlead_cli.cluster.checks.catalogue import CHECKS
from fairlead_cli.cluster.checks.check import Check, CheckStage
from fairlead_cli.cluster.checks.runner import SEEDED_FAULTS

_HEAD = """# Checks

What `fairlead check` looks at, and what to do about each ([how it is used](../how-to/inspect-a-cluster.md)). With `--pre`
it looks at a cluster before Fairlead is installed there.

A line begins with `√` (so it is), `‼` (a warning), `×` (it is not so) or `?` (unknown, with the reason). Only `×` makes
the exit code 1.

## Faults that are tested

Each of these was seeded, on values and in a real API server. The check of its row named it, and no other check failed.

| fault | check | seeded how |
|---|---|---|
"""
_WHEN = {
    CheckStage.PRE: "Before an installation.",
    CheckStage.BOTH: "Before an installation and after it.",
    CheckStage.POST: "",
}


def checks_page(note: str) -> str:
    """Returns docs/reference/checks.md."""
    faults = "".join(f"| {item.name} | [{item.check}](#{item.check}) | {item.how} |\n" for item in SEEDED_FAULTS)
    sections = [
        f"\n## {section}\n" + "".join(map(_check, section_checks))
        for section, section_checks in groupby(CHECKS, lambda item: item.section)
    ]
    return f"{note}{_HEAD}{faults}{''.join(sections)}"


def _check(check: Check) -> str:
    when = f" {_WHEN[check.stage]}" if _WHEN[check.stage] else ""
    return f"\n### {check.id}\n\n√ {check.title}.{when}\n\n{check.meaning}\n\nWhat to do: {check.remedy}\n"

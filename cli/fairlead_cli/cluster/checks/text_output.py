"""Results of checks as text, in the form of ``linkerd check``, and as a document."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from rich.text import Text

from fairlead_cli import formatting
from fairlead_cli.cluster.checks.verdict import CheckOutcome, CheckResult, truncate_lines
from fairlead_cli.cluster.missing_value import NOT_ALLOWED_PREFIX

OUTCOME_SIGNS: Final = {
    CheckOutcome.OK: "√",
    CheckOutcome.WARNING: "‼",
    CheckOutcome.FAILED: "×",
    CheckOutcome.UNKNOWN: "?",
}
OUTCOME_STYLES: Final = {
    CheckOutcome.OK: "green",
    CheckOutcome.WARNING: "yellow",
    CheckOutcome.FAILED: "red",
    CheckOutcome.UNKNOWN: "magenta",
}
_INDENT: Final = "    "
_LINK: Final = re.compile(r"\[([^]]*)\]\([^)]*\)")


def render_lines(results: Sequence[CheckResult]) -> Iterator[Text]:
    """Yields a heading for each section, a line for each check, and below a failure its findings
    and the fix.
    """
    for section, section_results in groupby(results, lambda result: result.check.section):
        yield Text(section, style="bold")
        for result in section_results:
            yield from _result(result)
        yield Text()
    yield Text(summarize(results))


def _result(result: CheckResult) -> Iterator[Text]:
    outcome = result.verdict.outcome
    note = f" ({result.verdict.note})" if result.verdict.note else ""
    yield Text.assemble((f"{OUTCOME_SIGNS[outcome]} ", OUTCOME_STYLES[outcome]), result.check.title, (note, "dim"))
    if outcome is CheckOutcome.OK:
        return
    for line in truncate_lines(result.verdict.lines):
        yield Text(f"{_INDENT}{line}")
    if outcome is not CheckOutcome.UNKNOWN:
        yield Text(f"{_INDENT}fix: {_plain(result.check.remedy)}", style="dim")
    elif all(line.startswith(NOT_ALLOWED_PREFIX) for line in result.verdict.lines):
        return  # the check of rights has said where to read on
    yield Text(f"{_INDENT}documentation: {result.check.anchor}", style="dim")


def _plain(text: str) -> str:
    """Returns the first sentence of a remedy without Markdown; the reference page has the rest."""
    return _LINK.sub(r"\1", text.partition(". ")[0].rstrip(".")).replace("`", "")


def summarize(results: Sequence[CheckResult]) -> str:
    """Returns ``27 checks: 25 passed, 1 warning, 1 failed``."""
    counts = count_outcomes(results)
    parts = [f"{counts['ok']} passed"]
    parts += [f"{counts['warning']} warning{'' if counts['warning'] == 1 else 's'}"] if counts["warning"] else []
    parts += [f"{counts['unknown']} unknown"] if counts["unknown"] else []
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    return f"{formatting.pluralize(len(results), 'check')}: {', '.join(parts)}"


def count_outcomes(results: Sequence[CheckResult]) -> dict[str, int]:
    """Returns the number of checks by outcome."""
    return {str(outcome): sum(result.verdict.outcome is outcome for result in results) for outcome in CheckOutcome}


def to_plain(results: Sequence[CheckResult], *, before_install: bool) -> dict[str, Any]:
    """Returns the complete results for a document."""
    return {
        "ok": not any(result.verdict.outcome is CheckOutcome.FAILED for result in results),
        "pre": before_install,
        "counts": count_outcomes(results),
        "checks": [
            {
                "id": result.check.id,
                "section": str(result.check.section),
                "says": result.check.title,
                "outcome": str(result.verdict.outcome),
                "note": result.verdict.note,
                "lines": list(result.verdict.lines),
                "hint": result.check.remedy,
                "docs": result.check.anchor,
            }
            for result in results
        ],
    }

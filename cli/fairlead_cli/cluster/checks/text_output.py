"""Results of checks as people read them, in Linkerd's form, and as programs do."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final

import msgspec
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
    """A heading for each section, a line for each check, and below what is not right: what was found, and what to do."""
    for section, found in groupby(results, lambda one: one.check.section):
        yield Text(section, style="bold")
        for one in found:
            yield from _result(one)
        yield Text()
    yield Text(summarize(results))


def _result(one: CheckResult) -> Iterator[Text]:
    mark = one.verdict.outcome
    note = f" ({one.verdict.note})" if one.verdict.note else ""
    yield Text.assemble((f"{OUTCOME_SIGNS[mark]} ", OUTCOME_STYLES[mark]), one.check.title, (note, "dim"))
    if mark is CheckOutcome.OK:
        return
    for line in truncate_lines(one.verdict.lines):
        yield Text(f"{_INDENT}{line}")
    if mark is not CheckOutcome.UNKNOWN:
        yield Text(f"{_INDENT}fix: {_plain(one.check.remedy)}", style="dim")
    elif all(line.startswith(NOT_ALLOWED_PREFIX) for line in one.verdict.lines):
        return  # the check of rights has said where to read on
    yield Text(f"{_INDENT}see {one.check.anchor}", style="dim")


def _plain(text: str) -> str:
    """The first sentence of what to do, without Markdown; the page has the rest."""
    return _LINK.sub(r"\1", text.partition(". ")[0].rstrip(".")).replace("`", "")


def summarize(results: Sequence[CheckResult]) -> str:
    """``27 checks: 25 passed, 1 warning, 1 failed``"""
    counts = count_outcomes(results)
    parts = [f"{counts['ok']} passed"]
    parts += [f"{counts['warning']} warning{'' if counts['warning'] == 1 else 's'}"] if counts["warning"] else []
    parts += [f"{counts['unknown']} cannot be told"] if counts["unknown"] else []
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    return f"{formatting.pluralize(len(results), 'check')}: {', '.join(parts)}"


def count_outcomes(results: Sequence[CheckResult]) -> dict[str, int]:
    """How many of each mark."""
    return {str(mark): sum(one.verdict.outcome is mark for one in results) for mark in CheckOutcome}


def to_plain(results: Sequence[CheckResult], *, before_install: bool) -> dict[str, Any]:
    """For programs: complete, nothing is cut."""
    return {
        "ok": not any(one.verdict.outcome is CheckOutcome.FAILED for one in results),
        "pre": before_install,
        "counts": count_outcomes(results),
        "checks": [
            {
                "id": one.check.id,
                "section": str(one.check.section),
                "says": one.check.title,
                "outcome": str(one.verdict.outcome),
                "note": one.verdict.note,
                "lines": list(one.verdict.lines),
                "hint": one.check.remedy,
                "docs": one.check.anchor,
            }
            for one in results
        ],
    }


def to_json(results: Sequence[CheckResult], *, before_install: bool) -> str:
    """The same as text."""
    return msgspec.json.format(msgspec.json.encode(to_plain(results, before_install=before_install))).decode()

"""Results of checks as people read them, in Linkerd's form, and as programs do."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final

import msgspec
from rich.text import Text

from fairlead_cli.cluster.missing import NOT_ALLOWED
from fairlead_cli.cluster.verdict import Mark, Result, shown
from fairlead_cli.local import words

SIGNS: Final = {Mark.OK: "√", Mark.WARNING: "‼", Mark.FAILED: "×", Mark.UNKNOWN: "?"}
STYLES: Final = {Mark.OK: "green", Mark.WARNING: "yellow", Mark.FAILED: "red", Mark.UNKNOWN: "magenta"}
_INDENT: Final = "    "
_LINK: Final = re.compile(r"\[([^]]*)\]\([^)]*\)")


def lines(results: Sequence[Result]) -> Iterator[Text]:
    """A heading for each section, a line for each check, and below what is not right: what was found, and what to do."""
    for section, found in groupby(results, lambda one: one.check.section):
        yield Text(section, style="bold")
        for one in found:
            yield from _result(one)
        yield Text()
    yield Text(summary(results))


def _result(one: Result) -> Iterator[Text]:
    mark = one.verdict.mark
    note = f" ({one.verdict.note})" if one.verdict.note else ""
    yield Text.assemble((f"{SIGNS[mark]} ", STYLES[mark]), one.check.says, (note, "dim"))
    if mark is Mark.OK:
        return
    for line in shown(one.verdict.lines):
        yield Text(f"{_INDENT}{line}")
    if mark is not Mark.UNKNOWN:
        yield Text(f"{_INDENT}fix: {_plain(one.check.do)}", style="dim")
    elif all(line.startswith(NOT_ALLOWED) for line in one.verdict.lines):
        return  # the check of rights has said where to read on
    yield Text(f"{_INDENT}see {one.check.anchor}", style="dim")


def _plain(text: str) -> str:
    """The first sentence of what to do, without Markdown; the page has the rest."""
    return _LINK.sub(r"\1", text.partition(". ")[0].rstrip(".")).replace("`", "")


def summary(results: Sequence[Result]) -> str:
    """``27 checks: 25 passed, 1 warning, 1 failed``"""
    counts = counted(results)
    parts = [f"{counts['ok']} passed"]
    parts += [f"{counts['warning']} warning{'' if counts['warning'] == 1 else 's'}"] if counts["warning"] else []
    parts += [f"{counts['unknown']} cannot be told"] if counts["unknown"] else []
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    return f"{words.plural(len(results), 'check')}: {', '.join(parts)}"


def counted(results: Sequence[Result]) -> dict[str, int]:
    """How many of each mark."""
    return {str(mark): sum(one.verdict.mark is mark for one in results) for mark in Mark}


def as_plain(results: Sequence[Result], *, before: bool) -> dict[str, Any]:
    """For programs: complete, nothing is cut."""
    return {
        "ok": not any(one.verdict.mark is Mark.FAILED for one in results),
        "pre": before,
        "counts": counted(results),
        "checks": [
            {
                "id": one.check.id,
                "section": str(one.check.section),
                "says": one.check.says,
                "outcome": str(one.verdict.mark),
                "note": one.verdict.note,
                "lines": list(one.verdict.lines),
                "hint": one.check.do,
                "docs": one.check.anchor,
            }
            for one in results
        ],
    }


def as_json(results: Sequence[Result], *, before: bool) -> str:
    """The same as text."""
    return msgspec.json.format(msgspec.json.encode(as_plain(results, before=before))).decode()

"""What a check finds: a mark, and lines that name the objects of the case."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fairlead_cli.cluster.catalogue import Check
from fairlead_cli.cluster.facts import Facts
from fairlead_cli.cluster.missing import Missing

LINES: Final = 6
"""Findings shown of one check; what lies behind is counted."""


class Mark(StrEnum):
    """How it stands. Only FAILED makes the exit code 1."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``note`` follows the line in brackets, ``lines`` stand below it."""

    mark: Mark
    lines: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """A check with its verdict."""

    check: Check
    verdict: Verdict


Judge = Callable[[Facts], Verdict | None]
"""None: the check does not concern this cluster, and is not printed."""


def ok(note: str = "") -> Verdict:
    """It is so."""
    return Verdict(Mark.OK, note=note)


def failed(*lines: str) -> Verdict:
    """It is not so."""
    return Verdict(Mark.FAILED, lines)


def warned(*lines: str) -> Verdict:
    """It is not so, and everything works all the same."""
    return Verdict(Mark.WARNING, lines)


def unknown(missing: Missing | str) -> Verdict:
    """It cannot be told, and why."""
    return Verdict(Mark.UNKNOWN, (missing if isinstance(missing, str) else missing.why,))


def judged(bad: Iterable[str], unsure: Iterable[str] = (), note: str = "", mark: Mark = Mark.FAILED) -> Verdict:
    """``mark`` with every finding; without one UNKNOWN with what is unsure; OK where there is neither."""
    findings = tuple(dict.fromkeys(bad))
    if findings:
        return Verdict(mark, findings)
    doubts = tuple(dict.fromkeys(unsure))
    return Verdict(Mark.UNKNOWN, doubts) if doubts else ok(note)


def shown(lines: Sequence[str]) -> list[str]:
    """At most so many of them, and how many more there are."""
    more = len(lines) - LINES
    return [*lines[:LINES], *([f"and {more} more"] if more > 0 else [])]

"""What a check finds: a mark, and lines that name the objects of the case."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fairlead_cli.cluster.checks.check import Check
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.missing_value import MissingValue

MAX_LINES: Final = 6
"""Findings shown of one check; what lies behind is counted."""


class CheckOutcome(StrEnum):
    """How it stands. Only FAILED makes the exit code 1."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``note`` follows the line in brackets, ``lines`` stand below it."""

    outcome: CheckOutcome
    lines: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A check with its verdict."""

    check: Check
    verdict: Verdict


Analyzer = Callable[[ClusterFacts], Verdict | None]
"""None: the check does not concern this cluster, and is not printed."""


def passed(note: str = "") -> Verdict:
    """It is so."""
    return Verdict(CheckOutcome.OK, note=note)


def failed(*lines: str) -> Verdict:
    """It is not so."""
    return Verdict(CheckOutcome.FAILED, lines)


def warned(*lines: str) -> Verdict:
    """It is not so, and everything works all the same."""
    return Verdict(CheckOutcome.WARNING, lines)


def unknown(missing: MissingValue | str) -> Verdict:
    """It cannot be told, and why."""
    return Verdict(CheckOutcome.UNKNOWN, (missing if isinstance(missing, str) else missing.reason,))


def verdict_of(
    bad: Iterable[str], unsure: Iterable[str] = (), note: str = "", mark: CheckOutcome = CheckOutcome.FAILED
) -> Verdict:
    """``mark`` with every finding; without one UNKNOWN with what is unsure; OK where there is neither."""
    findings = tuple(dict.fromkeys(bad))
    if findings:
        return Verdict(mark, findings)
    doubts = tuple(dict.fromkeys(unsure))
    return Verdict(CheckOutcome.UNKNOWN, doubts) if doubts else passed(note)


def truncate_lines(lines: Sequence[str]) -> list[str]:
    """At most so many of them, and how many more there are."""
    more = len(lines) - MAX_LINES
    return [*lines[:MAX_LINES], *([f"and {more} more"] if more > 0 else [])]

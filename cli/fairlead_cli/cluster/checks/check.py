"""The description of one check, its section, and when it applies."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from fairlead.distribution import ADDRESSES
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.object_fields import MissingValue

_REFERENCE_PAGE: Final = "reference/checks.html"


OLDEST_KUBERNETES: Final = (1, 30)
"""As in the chart's ``kubeVersion``; a test holds the two equal."""

T = TypeVar("T")
MAX_LINES: Final = 6
"""Findings printed of one check; the rest is counted."""


class CheckSection(StrEnum):
    """Headings in the order of output; a section depends on those above it."""

    API = "kubernetes-api"
    PERMISSIONS = "permissions"
    CLUSTER = "cluster"
    CRDS = "crds"
    OPERATOR = "operator"
    GATEWAY = "gateway"
    INDEXER = "indexer"
    AUTOSCALER = "autoscaler"
    MODELS = "models"
    SECURITY = "security"
    VERSIONS = "versions"


class CheckStage(StrEnum):
    """When a check applies: before an installation (``--pre``), after it, or both."""

    PRE = "pre"
    POST = "post"
    BOTH = "both"


class CheckOutcome(StrEnum):
    """Outcome of a check. Only FAILED makes the exit code 1."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome with findings. ``note`` follows the title in brackets, ``lines`` stand below it."""

    outcome: CheckOutcome
    lines: tuple[str, ...] = ()
    note: str = ""


Analyzer = Callable[[ClusterFacts], Verdict | None]
"""Returns None when the check does not concern the cluster; it is then not printed."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check. ``title`` states what should be true; ``meaning`` and ``remedy`` are for the
    reference page.
    """

    section: CheckSection
    id: str
    analyze: Analyzer
    title: str
    meaning: str
    remedy: str
    stage: CheckStage = CheckStage.POST

    @property
    def anchor(self) -> str:
        return f"{ADDRESSES.documentation_page(_REFERENCE_PAGE)}#{self.id}"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A check with its verdict."""

    check: Check
    verdict: Verdict


class MissingFact(Exception):
    """Raised by an analyzer for a fact that could not be read: its verdict is unknown."""

    def __init__(self, missing: MissingValue) -> None:
        super().__init__(missing.reason)
        self.missing = missing


def known(fact: T | MissingValue) -> T:
    """Returns a fact. Raises MissingFact if it could not be read."""
    if isinstance(fact, MissingValue):
        raise MissingFact(fact)
    return fact


def passed(note: str = "") -> Verdict:
    return Verdict(CheckOutcome.OK, note=note)


def failed(*lines: str) -> Verdict:
    return Verdict(CheckOutcome.FAILED, lines)


def warned(*lines: str) -> Verdict:
    return Verdict(CheckOutcome.WARNING, lines)


def unknown(missing: MissingValue | str) -> Verdict:
    return Verdict(CheckOutcome.UNKNOWN, (missing if isinstance(missing, str) else missing.reason,))


def verdict_of(
    findings: Iterable[str], doubts: Iterable[str] = (), note: str = "", outcome: CheckOutcome = CheckOutcome.FAILED
) -> Verdict:
    """Returns ``outcome`` if there are findings, else UNKNOWN if there are doubts, else OK."""
    problems = tuple(dict.fromkeys(findings))
    if problems:
        return Verdict(outcome, problems)
    reasons = tuple(dict.fromkeys(doubts))
    return Verdict(CheckOutcome.UNKNOWN, reasons) if reasons else passed(note)


def truncate_lines(lines: Sequence[str]) -> list[str]:
    more = len(lines) - MAX_LINES
    return [*lines[:MAX_LINES], *([f"and {more} more"] if more > 0 else [])]

"""The verdict whether an engine hangs: it takes connections and answers no request.

An engine's `/health` can say 200 while its core is dead. Only requests show that, and gateways see
them. The operator and local mode replace an engine by this verdict.

A gateway *votes* if it has ejected the instance for the grace. The engine hangs in two cases:

- two gateways vote;
- one gateway votes, and two of its own one-token probes have failed since the ejection.

A gateway that had an answer lately vetoes. Load is no cause: gateways eject no engine for it.

The module is pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fairlead.units import format_duration

MIN_VOTERS: Final = 2
"""Gateways that suffice for a verdict without a probe."""
MIN_FAILED_PROBES: Final = 2
"""Failed probes that suffice for a verdict of one gateway."""


@dataclass(frozen=True, slots=True)
class EjectionReport:
    """An ejection by failures with which an engine may hang; load is none of them.

    - seconds: Seconds since the ejection, without any answer since then.
    - cause: The failures that led to it, as text.
    - failed_probes: Probes of the gateway itself that failed since; each asks for one token.
    - workers: Number of workers that have ejected it.
    """

    seconds: float
    cause: str
    failed_probes: int
    workers: int


@dataclass(frozen=True, slots=True)
class HungVerdict:
    """The verdict about one instance.

    reason: as text, for either verdict.
    voters: the gateways that have ejected the instance for the grace, in order of their names.
    """

    is_hung: bool
    reason: str
    voters: tuple[str, ...] = ()


def hung_verdict(reports: Mapping[str, EjectionReport | None], *, grace_seconds: float) -> HungVerdict:
    """Returns whether an engine hangs, by the reports of gateways by name.

    reports: None: the gateway has not ejected the instance, and had an answer within the grace
        (`answer_age_seconds` of its `/api/fleet`). It vetoes. The caller leaves out a gateway that
        has neither: it knows nothing.
    grace_seconds: how long an ejection lasts before it counts.
    """
    ejections = {name: report for name, report in sorted(reports.items()) if report is not None}
    voting = {name: report for name, report in ejections.items() if report.seconds >= grace_seconds}
    voters = tuple(voting)
    vetoing = sorted(name for name, report in reports.items() if report is None)
    grace = format_duration(grace_seconds)
    if not ejections:
        return HungVerdict(False, "no gateway has ejected it")
    if vetoing:
        return HungVerdict(False, f"{', '.join(vetoing)}: had an answer of it lately", voters)
    if not voting:
        longest = max(ejections.values(), key=lambda report: report.seconds)
        return HungVerdict(False, f"no answer for {format_duration(longest.seconds)}, and the grace is {grace}")
    observed = "; ".join(f"{name}: {_describe(report)}" for name, report in voting.items())
    if len(voting) >= MIN_VOTERS:
        return HungVerdict(True, f"{len(voting)} gateways get no answer ({observed})", voters)
    failed_probes = sum(report.failed_probes for report in voting.values())
    if failed_probes >= MIN_FAILED_PROBES:
        return HungVerdict(True, f"{failed_probes} probes failed ({observed})", voters)
    return HungVerdict(
        False, f"one gateway gets no answer, and {failed_probes} of {MIN_FAILED_PROBES} probes failed", voters
    )


def _describe(report: EjectionReport) -> str:
    return f"no answer for {format_duration(report.seconds)} since {report.cause}"

"""The options of a report."""

import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead.usage.ledger_reader import USAGE_QUERY_DAYS, days_until, parse_day
from fairlead_cli.output import OutputFlag
from fairlead_cli.target import ClusterOptions, ContextFlag, InstallationFlag, KubeconfigFlag


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Options of a report: the place of ledgers, its days, and its form."""

    first: Annotated[str | None, Parameter(name="--from", help="The first day, in UTC, such as 2026-11-01.")] = None
    last: Annotated[str | None, Parameter(name="--to", help="The last day, included. Default: today.")] = None
    span: Annotated[str | None, Parameter(name="--last", help="So many days up to the last one. Default: 7d.")] = None
    dir: Annotated[
        list[Path] | None,
        Parameter(help="A ledger's folder on this machine, instead of gateways; can be given again."),
    ] = None
    manage: Annotated[
        str | None, Parameter(help="Management address of a gateway. Default: the newest stack on this machine.")
    ] = None
    context: ContextFlag = None
    kubeconfig: KubeconfigFlag = None
    install_namespace: InstallationFlag = None
    csv: Annotated[bool, Parameter(negative=(), help="Print CSV instead of a table.")] = False
    focus: Annotated[bool, Parameter(negative=(), help="Print CSV with the columns of FOCUS, for cost tools.")] = False
    output: OutputFlag = "table"

    @property
    def cluster(self) -> ClusterOptions:
        """The cluster whose gateways have ledgers."""
        return ClusterOptions(self.kubeconfig, self.context, install_namespace=self.install_namespace)

    def days(self, today: date) -> tuple[str, str]:
        """Returns the first and the last day of the report. Raises BadInput."""
        last = today if self.last is None else parse_day(self.last, "--to")
        if self.first is not None and self.span is not None:
            raise BadInput("--from and --last exclude each other", field="--last", hint="give one of them")
        span = _parse_span(self.span or "7d")
        first = days_until(last, span)[0] if self.first is None else parse_day(self.first, "--from")
        if first > last:
            raise BadInput(f"{first} is after {last}", field="--from", hint="give the earlier day as --from")
        if (last - first).days >= USAGE_QUERY_DAYS:
            most = USAGE_QUERY_DAYS
            raise BadInput(f"a report spans at most {most} days", field="--from", hint="give a later day")
        return first.isoformat(), last.isoformat()


def _parse_span(text: str) -> int:
    """Returns the days of a span such as `7d`. Raises BadInput."""
    match = re.fullmatch(r"([1-9][0-9]{0,3})d", text)
    if match is None:
        raise BadInput(f"{text!r} is not a number of days", field="--last", hint="write it like 7d")
    return int(match[1])

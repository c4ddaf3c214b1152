"""The options of a report."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from fairlead.errors import BadInput
from fairlead.usage.ledger_reader import USAGE_QUERY_DAYS, days_until, parse_day
from fairlead_cli.output import OutputFormat
from fairlead_cli.target import ClusterOptions

TextFormat = Literal["table", "csv", "focus"]


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """The place of ledgers, and the form of the report.

    folders: ledgers to read; empty for those of gateways.
    first, last: days as text; None for the default.
    span: such as `7d`, up to `last`.
    text: the form of the output if it is no document; `focus` is CSV with the columns of FOCUS.
    """

    by: str
    first: str | None
    last: str | None
    span: str | None
    folders: Sequence[Path]
    manage: str | None
    cluster: ClusterOptions
    output: OutputFormat
    text: TextFormat

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

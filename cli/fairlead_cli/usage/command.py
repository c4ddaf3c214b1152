"""``fairlead usage`` and ``fairlead cost``: reports from the ledgers of gateways."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from fairlead.errors import BadInput, plain_text
from fairlead.management_api import UsageOut
from fairlead.runtime.clock import SystemClock
from fairlead.units import format_duration, format_exact_usd, format_usd
from fairlead.usage.ledger_reader import (
    USAGE_QUERY_DAYS,
    LedgerContent,
    days_until,
    merge_ledgers,
    parse_day,
    read_ledger,
)
from fairlead.usage.record import UsageTotals
from fairlead.usage.replica_log import ReplicaSpan, ReplicaView
from fairlead.usage.report import CostReport, CostRow, cost_report, group_usage, parse_dimensions
from fairlead_cli.console import terminal_text
from fairlead_cli.exit_codes import OK, UNREACHABLE, ClusterUnreachable, StackUnreachable, report_failure
from fairlead_cli.formatting import UNKNOWN, align_columns, format_count, format_share
from fairlead_cli.management.client import open_endpoints
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.target import ClusterOptions, ContextFlag, InstallationFlag, KubeconfigFlag
from fairlead_cli.usage import focus
from fairlead_cli.usage.focus import format_csv

_ByFlag = Annotated[str, Parameter(help="What to group by, with commas: tenant, key, model, adapter, dialect, day.")]

NO_USE = "no use in this time"


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


_Options = Annotated[ReportOptions, Parameter(name="*")]
_DEFAULTS = ReportOptions()


def usage(*, by: _ByFlag = "tenant", flags: _Options = _DEFAULTS) -> int:
    """Show what tenants used: requests, tokens, and their cost by the prices of the models.

    Gateways that share a ledger count once. Documents and CSV have exact amounts.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no gateway can be reached.
    """
    dimensions = parse_dimensions(by)
    first, last = flags.days(datetime.fromtimestamp(SystemClock().wall(), UTC).date())
    try:
        content = read_ledgers(flags, first, last)
    except (ClusterUnreachable, StackUnreachable) as error:
        return report_failure(error, UNREACHABLE)
    rows = group_usage(content.usage, dimensions)
    if is_document(flags.output):
        document = {"from": first, "to": last, "usage": usage_rows(rows, dimensions)}
        print(format_document(document, flags.output))
    elif flags.focus:
        print(focus.format_csv(focus.usage_rows(content.usage)), end="")
    elif flags.csv:
        print(format_rows(usage_rows(rows, dimensions)))
    else:
        print(terminal_text(render_usage(rows, dimensions, is_wide=flags.output == "wide")))
    _print_notes(_loss_notes(content))
    return OK


def cost(*, by: _ByFlag = "tenant", flags: _Options = _DEFAULTS) -> int:
    """Show what replicas cost, divided among tenants by engine time. The sum is the bill.

    The price of a replica is costPerHour of its AcceleratorClass times its devices. Unused replicas
    are shown by state: idle, starting, sleeping. Documents and CSV have exact amounts.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no gateway can be reached.
    """
    dimensions = parse_dimensions(by)
    first, last = flags.days(datetime.fromtimestamp(SystemClock().wall(), UTC).date())
    try:
        content = read_ledgers(flags, first, last)
    except (ClusterUnreachable, StackUnreachable) as error:
        return report_failure(error, UNREACHABLE)
    report = cost_report(content, dimensions)
    if is_document(flags.output):
        document = {
            "from": first,
            "to": last,
            "billNanoUsd": report.bill_nano_usd,
            "unpricedReplicaSeconds": report.unpriced_seconds,
            "cost": cost_rows(report),
        }
        print(format_document(document, flags.output))
    elif flags.focus:
        print(focus.format_csv(focus.cost_rows(content)), end="")
    elif flags.csv:
        print(format_rows(cost_rows(report)))
    else:
        print(terminal_text(render_cost(report)))
    _print_notes([*cost_notes(report), *_loss_notes(content)])
    return OK


def _loss_notes(content: LedgerContent) -> list[str]:
    notes = []
    if content.broken:
        notes.append(f"{content.broken} lines of the ledger could not be read, as after a crash")
    if content.lost:
        notes.append(f"gateways have lost {content.lost} usage records since they started")
    return notes


def _print_notes(notes: list[str]) -> None:
    for note in notes:
        print(plain_text(f"note: {note}"), file=sys.stderr)


def usage_rows(rows: Sequence[UsageTotals], dimensions: Sequence[str]) -> list[dict[str, object]]:
    """Returns one mapping for each group."""
    return [
        {
            **{name: getattr(row, name) for name in dimensions},
            "requests": row.requests,
            "failed": row.failed,
            "estimated": row.estimated,
            "unpriced": row.unpriced,
            "inputTokens": row.input_tokens,
            "cachedTokens": row.cached_tokens,
            "outputTokens": row.output_tokens,
            "engineSeconds": row.engine_microseconds / 1e6,
            "costUsd": format_exact_usd(row.cost_nano_usd),
            "savedUsd": format_exact_usd(row.saved_nano_usd),
        }
        for row in rows
    ]


def cost_rows(report: CostReport) -> list[dict[str, object]]:
    """Returns one mapping for each group, and for what was unused."""
    return [
        {
            **dict(zip(report.dimensions, row.group, strict=True)),
            "state": row.state or "Used",
            "engineSeconds": row.engine_microseconds / 1e6,
            "costUsd": format_exact_usd(row.nano_usd),
            "savedUsd": format_exact_usd(row.saved_nano_usd),
        }
        for row in report.rows
    ]


def format_rows(rows: Sequence[Mapping[str, object]]) -> str:
    """Returns rows as CSV with a header, without a line break at its end; None is empty."""
    return format_csv(rows, list(rows[0])).rstrip("\n") if rows else ""


def read_ledgers(options: ReportOptions, first_day: str, last_day: str) -> LedgerContent:
    """Returns what all ledgers hold about these days. A shared ledger counts once.

    Raises BadInput, StackUnreachable, and ClusterUnreachable.
    """
    if options.dir:
        return merge_ledgers(read_ledger(folder, first_day, last_day) for folder in options.dir)
    with open_endpoints(options.manage, options.cluster) as endpoints:
        # One after another: ports are forwarded for each.
        answers = [endpoint.query(lambda client: client.usage(first_day, last_day)) for endpoint in endpoints]
        return merge_ledgers(map(to_content, answers))


def to_content(reply: UsageOut) -> LedgerContent:
    """Returns the content of the ledger that a gateway has answered with."""
    replicas = [
        ReplicaSpan(
            span.replica, span.start, span.end, ReplicaView(span.model, span.pool, span.state, span.nano_usd_per_hour)
        )
        for span in reply.replicas
    ]
    usage = [UsageTotals(**msgspec.structs.asdict(row)) for row in reply.usage]
    return LedgerContent(reply.ledger, usage, replicas, reply.broken, reply.lost)


def render_usage(rows: Sequence[UsageTotals], dimensions: Sequence[str], *, is_wide: bool = False) -> str:
    """Returns a table of what each group used, and the total.

    is_wide: also the engine time, and how many requests are estimated or have no price.
    """
    if not rows:
        return NO_USE
    header = [name.upper() for name in dimensions]
    header += ["REQUESTS", "FAILED", "INPUT", "CACHED", "OUTPUT", "COST", "SAVED"]
    header += ["ENGINE", "ESTIMATED", "UNPRICED"] if is_wide else []
    lines = [[*[getattr(row, name) or UNKNOWN for name in dimensions], *_usage_cells(row, is_wide)] for row in rows]
    if len(rows) > 1:
        total = UsageTotals()
        for row in rows:
            total.add(row)
        lines.append(["total", *[""] * (len(dimensions) - 1), *_usage_cells(total, is_wide)])
    return align_columns([header, *lines])


def render_cost(report: CostReport) -> str:
    """Returns a table of what each group costs, what was unused, and the bill."""
    if not report.rows:
        return NO_USE
    header = [*[name.upper() for name in report.dimensions], "STATE", "COST", "SHARE", "ENGINE", "SAVED"]
    lines = [_cost_line(row, report.bill_nano_usd) for row in report.rows]
    bill = [format_money(report.bill_nano_usd), "100 %" if report.bill_nano_usd else UNKNOWN, "", ""]
    lines.append(["total", *[""] * len(report.dimensions), *bill])
    return align_columns([header, *lines])


def cost_notes(report: CostReport) -> list[str]:
    """Returns texts about what the report does not contain."""
    notes = []
    if report.unpriced_seconds:
        hours = report.unpriced_seconds / 3_600
        notes.append(
            f"{hours:.1f} replica-hours have no price and are not in the report: set costPerHour of the AcceleratorClass"
        )
    if report.unattributed_microseconds:
        used = format_duration(report.unattributed_microseconds / 1e6)
        notes.append(f"{used} of engine time have no cost: no priced replica of their pool was recorded")
    return notes


def format_money(nano_usd: int) -> str:
    return f"${format_usd(nano_usd)}"


def _usage_cells(row: UsageTotals, is_wide: bool) -> list[str]:
    is_priced = row.unpriced < row.requests
    more = [_engine_time(row.engine_microseconds), format_count(row.estimated), format_count(row.unpriced)]
    return [
        format_count(row.requests),
        format_count(row.failed),
        format_count(row.input_tokens),
        format_count(row.cached_tokens),
        format_count(row.output_tokens),
        format_money(row.cost_nano_usd) if is_priced else UNKNOWN,
        format_money(row.saved_nano_usd) if is_priced else UNKNOWN,
        *(more if is_wide else []),
    ]


def _cost_line(row: CostRow, bill: int) -> list[str]:
    share = format_share(row.nano_usd / bill) if bill else UNKNOWN
    names = [value or UNKNOWN for value in row.group]
    if row.state:
        return [*names, row.state.lower(), format_money(row.nano_usd), share, "", ""]
    saved = format_money(row.saved_nano_usd)
    return [*names, "used", format_money(row.nano_usd), share, _engine_time(row.engine_microseconds), saved]


def _engine_time(microseconds: int) -> str:
    return format_duration(microseconds / 1e6) if microseconds else "0s"

"""``fairlead usage`` and ``fairlead cost``: reports from the ledgers of gateways."""

import sys
from datetime import UTC, datetime
from typing import Annotated

from cyclopts import Parameter

from fairlead.errors import plain_text
from fairlead.runtime.clock import SystemClock
from fairlead.usage import focus
from fairlead.usage.ledger_reader import LedgerContent
from fairlead.usage.report import cost_report, group_usage, parse_dimensions
from fairlead_cli.console import terminal_text
from fairlead_cli.errors import ClusterUnreachable, StackUnreachable
from fairlead_cli.exit_codes import OK, UNREACHABLE, report_failure
from fairlead_cli.output import format_document, is_document
from fairlead_cli.usage.documents import cost_rows, format_rows, usage_rows
from fairlead_cli.usage.ledger_sources import read_ledgers
from fairlead_cli.usage.options import ReportOptions
from fairlead_cli.usage.text_output import cost_notes, render_cost, render_usage

_ByFlag = Annotated[str, Parameter(help="What to group by, with commas: tenant, key, model, adapter, day.")]
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
        return report_failure("usage", error, UNREACHABLE)
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
        return report_failure("cost", error, UNREACHABLE)
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

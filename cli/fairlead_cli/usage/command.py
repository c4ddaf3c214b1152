"""``fairlead usage`` and ``fairlead cost``: from the options to the exit code."""

import sys
from datetime import UTC, datetime

from fairlead.errors import plain_text
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


def run_usage(options: ReportOptions, wall: float) -> int:
    """Prints what tenants used and returns the exit code. Raises BadInput and KubeError.

    wall: the present time in Unix seconds.
    """
    dimensions = parse_dimensions(options.by)
    first, last = options.days(datetime.fromtimestamp(wall, UTC).date())
    try:
        content = read_ledgers(options, first, last)
    except (ClusterUnreachable, StackUnreachable) as error:
        return report_failure("usage", error, UNREACHABLE)
    rows = group_usage(content.usage, dimensions)
    if is_document(options.output):
        document = {"from": first, "to": last, "usage": usage_rows(rows, dimensions)}
        print(format_document(document, options.output))
    elif options.text == "focus":
        print(focus.format_csv(focus.usage_rows(content.usage)), end="")
    elif options.text == "csv":
        print(format_rows(usage_rows(rows, dimensions)))
    else:
        print(terminal_text(render_usage(rows, dimensions, is_wide=options.output == "wide")))
    _print_notes(_loss_notes(content))
    return OK


def run_cost(options: ReportOptions, wall: float) -> int:
    """Prints what replicas cost, by those who used them; returns the exit code.

    Raises BadInput and KubeError.

    wall: the present time in Unix seconds.
    """
    dimensions = parse_dimensions(options.by)
    first, last = options.days(datetime.fromtimestamp(wall, UTC).date())
    try:
        content = read_ledgers(options, first, last)
    except (ClusterUnreachable, StackUnreachable) as error:
        return report_failure("cost", error, UNREACHABLE)
    report = cost_report(content, dimensions)
    if is_document(options.output):
        document = {
            "from": first,
            "to": last,
            "billNanoUsd": report.bill_nano_usd,
            "unpricedReplicaSeconds": report.unpriced_seconds,
            "cost": cost_rows(report),
        }
        print(format_document(document, options.output))
    elif options.text == "focus":
        print(focus.format_csv(focus.cost_rows(content)), end="")
    elif options.text == "csv":
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

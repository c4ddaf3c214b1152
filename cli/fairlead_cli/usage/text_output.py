"""Reports as tables for people. Amounts are rounded; the documents have them exactly."""

from collections.abc import Sequence

from fairlead.units import format_duration, format_usd
from fairlead.usage.record import UsageTotals
from fairlead.usage.report import CostReport, CostRow
from fairlead_cli.formatting import UNKNOWN, align_columns, format_count, format_share

NO_USE = "no use in this time"


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
    """Returns dollars as text."""
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

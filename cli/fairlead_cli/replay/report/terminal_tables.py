"""The report for a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from fairlead.units import format_duration
from fairlead_cli.replay.report.report import TABLE_HEADINGS, PolicyResult, ReplayReport, describe_findings, table_rows
from fairlead_cli.replay.validity import MAX_LOOP_LAG_SECONDS

TERMINAL_COLUMNS = (
    "policy",
    "",
    "TTFT mean",
    "TTFT p90",
    "TTFT p99",
    "ITL mean",
    "in SLO",
    "cached",
    "load spread",
    "errors",
)
"""The columns of the report that fit a terminal of 80 columns."""
SHORT_TITLES = {
    "TTFT mean": "TTFT",
    "TTFT p90": "p90",
    "TTFT p99": "p99",
    "ITL mean": "ITL",
    "in SLO": "met",
    "load spread": "σ/µ",
    "errors": "err",
}


def print_report(report: ReplayReport, console: Console, files: Sequence[Path]) -> None:
    """Prints tables, findings, validity and the paths of the files."""
    console.print(_table(report.policies, f"at {report.rate:g} requests/s, seconds are simulated"))
    if report.light:
        console.print(_table(report.light, f"at {report.light_rate:g} requests/s"))
    for line in describe_findings(report):
        console.print(f"  {line}", highlight=False)
    lag = report.lag_p99_seconds
    if report.invalid_reasons:
        console.print("[bold red]These live numbers are not valid:[/]")
        for reason in report.invalid_reasons:
            console.print(f"  {reason}", highlight=False, markup=False)
    elif lag is not None:
        limit = format_duration(MAX_LOOP_LAG_SECONDS)
        console.print(
            f"  valid: no event loop was more than {format_duration(lag)} late (p99; the limit is {limit})",
            highlight=False,
        )
    console.print("  " + "  ".join(str(file) for file in files), highlight=False, soft_wrap=True)


def _table(policies: Mapping[str, PolicyResult], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in TERMINAL_COLUMNS:
        table.add_column(
            SHORT_TITLES.get(column, column), justify="left" if column in ("policy", "") else "right", no_wrap=True
        )
    columns = [TABLE_HEADINGS.index(column) for column in TERMINAL_COLUMNS]
    for row in table_rows(policies):
        table.add_row(*(row[index].replace("simulated", "sim") for index in columns))
    return table

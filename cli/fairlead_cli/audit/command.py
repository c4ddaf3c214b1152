"""``fairlead audit``: from the options to the exit code."""

import sys
from dataclasses import dataclass
from pathlib import Path

from fairlead.audit.record import to_builtins
from fairlead.errors import BadInput, plain_text
from fairlead.runtime.clock import SystemClock
from fairlead_cli.audit.sources import FoundRecords, read_files, read_gateways
from fairlead_cli.audit.text_output import render_records
from fairlead_cli.exit_codes import run_query
from fairlead_cli.management.endpoints import open_endpoints
from fairlead_cli.output import OutputFormat, format_document, is_document
from fairlead_cli.scaling.time_argument import parse_moment
from fairlead_cli.target import ClusterOptions


@dataclass(frozen=True, slots=True)
class AuditSelection:
    """The records to show. ``folder``: of audit files; None: those of the gateways."""

    since: str
    tenant: str | None = None
    folder: Path | None = None


def run_audit(selection: AuditSelection, manage: str | None, cluster: ClusterOptions, output: OutputFormat) -> int:
    """Prints the records and returns the exit code. Raises BadInput for a wrong time."""
    since = max(0.0, parse_moment(selection.since, SystemClock().wall(), "--since"))
    if selection.folder is not None and manage is not None:
        raise BadInput("--dir and --manage exclude each other", field="--dir", hint="give one of them")

    def fetch() -> FoundRecords:
        if selection.folder is not None:
            return read_files(selection.folder, since, selection.tenant)
        with open_endpoints(manage, cluster) as endpoints:
            return read_gateways(endpoints, since, selection.tenant)

    def render(found: FoundRecords) -> str:
        for problem in found.problems:
            print(plain_text(f"fairlead audit: {problem}"), file=sys.stderr)
        if is_document(output):
            return format_document({"records": [to_builtins(record) for record in found.records]}, output)
        return render_records(found.records, is_wide=output == "wide")

    return run_query("audit", fetch, render)

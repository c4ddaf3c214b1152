"""``fairlead audit``: shows who changed or read what."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairlead.audit.record import to_builtins
from fairlead.errors import BadInput, plain_text
from fairlead.runtime.clock import SystemClock
from fairlead_cli.audit.sources import FoundRecords, read_files, read_gateways
from fairlead_cli.audit.text_output import render_records
from fairlead_cli.exit_codes import run_query
from fairlead_cli.management.endpoints import GatewaysSource, open_endpoints
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.scaling.time_argument import parse_moment

_GATEWAYS = GatewaysSource()


def audit(
    *,
    since: Annotated[
        str, Parameter(help="The oldest record: 1h (ago), 14:05, or 2026-11-21T14:05. Default: a day ago.")
    ] = "24h",
    tenant: Annotated[str | None, Parameter(help="Only records about this tenant.")] = None,
    dir: Annotated[Path | None, Parameter(help="A folder of audit files, instead of the gateways.")] = None,
    source: Annotated[GatewaysSource, Parameter(name="*")] = _GATEWAYS,
    output: OutputFlag = "table",
) -> int:
    """Show who changed or read what, when, and why.

    Reads the last records of all gateways, or with --dir the files of FAIRLEAD_AUDIT_DIR. A change
    that several gateways recorded is shown once. JSON and YAML have every record.

    Exits 0 when done, 1 when the folder has no audit file, 2 on wrong usage, 3 when no gateway can
    be reached.
    """
    oldest = max(0.0, parse_moment(since, SystemClock().wall(), "--since"))
    if dir is not None and source.manage is not None:
        raise BadInput("--dir and --manage exclude each other", field="--dir", hint="give one of them")

    def fetch() -> FoundRecords:
        if dir is not None:
            return read_files(dir, oldest, tenant)
        with open_endpoints(source.manage, source.installation.cluster) as endpoints:
            return read_gateways(endpoints, oldest, tenant)

    def render(found: FoundRecords) -> str:
        for problem in found.problems:
            print(plain_text(f"fairlead audit: {problem}"), file=sys.stderr)
        if is_document(output):
            return format_document({"records": [to_builtins(record) for record in found.records]}, output)
        return render_records(found.records, is_wide=output == "wide")

    return run_query("audit", fetch, render)

"""``fairlead audit``: shows who changed or read what."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairlead_cli.commands.operations.explain import GatewaysSource
from fairlead_cli.output import OutputFlag

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
    from fairlead_cli.audit.command import AuditSelection, run_audit

    return run_audit(AuditSelection(since, tenant, dir), source.manage, source.installation.cluster, output)

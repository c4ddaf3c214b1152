"""``fairlead check``: is a cluster fit for Fairlead, and is the installation healthy?"""

from typing import Annotated

from cyclopts import Parameter

from fairlead_cli.output import OutputFlag
from fairlead_cli.target import InstallationOptions

_DEFAULTS = InstallationOptions()


def check(
    *,
    pre: Annotated[
        bool, Parameter(negative=(), help="Look at the cluster before Fairlead is installed there.")
    ] = False,
    wait: Annotated[
        str | None, Parameter(help="Look again until nothing fails, for at most this long, such as 60s.")
    ] = None,
    installation: Annotated[InstallationOptions, Parameter(name="*")] = _DEFAULTS,
    output: OutputFlag = "table",
) -> int:
    """Check a cluster, and say how to fix each failure.

    A line begins with √ (passed), ‼ (a warning), × (failed) or ? (unknown, with the reason).
    Nothing is changed; with --pre, one pod is sent as a dry run, to the namespace fairlead unless
    --install-namespace names another.

    Exits 0 when nothing failed, 1 when something did, 2 on wrong usage, 3 when no API server can be
    reached.
    """
    from fairlead_cli.cluster.checks.command import CheckOptions, run

    return run(CheckOptions(installation.cluster, pre, wait, output))

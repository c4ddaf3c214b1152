"""``fairlead local status``: the stack on this machine, and a line of advice."""

from typing import Annotated

from cyclopts import Parameter

from fairlead_cli.output import OutputFlag
from fairlead_cli.target import ModelFlag


def local_status(
    model: ModelFlag = None,
    *,
    manage: Annotated[
        str | None, Parameter(help="A gateway's management address. Default: that of the running `fairlead up`.")
    ] = None,
    output: OutputFlag = "table",
) -> int:
    """Show what the stack of `fairlead up` serves, how well, its last decisions, and what to do
    next.

    Exits 0 when all is well, 1 on a problem, 2 on wrong usage, 3 when no gateway can be reached.
    """
    from fairlead_cli.local.status.command import run

    return run(model, manage, output)

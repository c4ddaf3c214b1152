"""``fairlead status``: models, pools, instances, last decisions, and one line of advice."""

from typing import Annotated, Literal

from cyclopts import Parameter


def status(
    model: Annotated[str | None, Parameter(help="Only this model.")] = None,
    /,
    *,
    manage: Annotated[
        str | None, Parameter(help="The gateway's management address. Default: that of the running `fairlead up`.")
    ] = None,
    output: Annotated[Literal["table", "json"], Parameter(name=["--output", "-o"], help="How to say it.")] = "table",
) -> int:
    """Show what serves, how well, where the last requests went and why, and what to do next.

    Exits 0 when all is well, 1 when something is wrong, 2 on wrong usage, 3 when no gateway can be reached.
    """
    from fairlead_cli.local.telling import run

    return run(model, manage, output)

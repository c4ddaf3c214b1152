"""``fairlead status``: models of a cluster, their pools, instances, and a line of advice."""

from typing import Annotated

from cyclopts import Parameter

from fairlead_cli.output import OutputFlag
from fairlead_cli.target import ClusterOptions, ModelFlag

_DEFAULTS = ClusterOptions()


def status(
    model: ModelFlag = None,
    *,
    cluster: Annotated[ClusterOptions, Parameter(name="*")] = _DEFAULTS,
    output: OutputFlag = "table",
) -> int:
    """Show what a cluster serves, how well, and what to do next.

    Without a model it is a table of all models, or of those in the namespace of -n. With one, it is
    the model with its pools, pods, engine signals, conditions and last events. `fairlead local
    status` shows the stack of `fairlead up`.

    Exits 0 when all is well, 1 on a problem, 2 on wrong usage, 3 when no API server can be reached.
    """
    from fairlead_cli.cluster.status.command import run

    return run(model, cluster, output)

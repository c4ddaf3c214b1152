"""``fairlead status``: models, pools, instances, and a line of advice."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def status(
    model: Annotated[str | None, Parameter(help="Only this model, in a cluster also as namespace/name.")] = None,
    /,
    *,
    manage: Annotated[
        str | None, Parameter(help="A gateway's management address. Default: that of the running `fairlead up`.")
    ] = None,
    namespace: Annotated[
        str | None, Parameter(name=["--namespace", "-n"], help="Of a cluster: models of this namespace.")
    ] = None,
    context: Annotated[
        str | None, Parameter(help="Of a cluster: a context of the kubeconfig. Default: its current one.")
    ] = None,
    kubeconfig: Annotated[
        Path | None, Parameter(help="Of a cluster: its kubeconfig. Default: KUBECONFIG, else ~/.kube/config.")
    ] = None,
    output: Annotated[Literal["table", "json"], Parameter(name=["--output", "-o"], help="How to say it.")] = "table",
) -> int:
    """Show what serves, how well, and what to do next.

    Of the stack of `fairlead up` it shows the last decisions. Of a cluster it shows a table of all
    models, or one model with its pools, pods, engine signals, conditions and last events.

    It looks at a cluster when an option names one, and when it is called as `kubectl fairlead`. It
    also does when no stack runs here and a kubeconfig exists.

    Exits 0 when all is well, 1 on a problem, 2 on wrong usage, 3 when no gateway, or no API server,
    can be reached.
    """
    from fairlead_cli.cluster.access.connection import ClusterOptions
    from fairlead_cli.target import is_cluster_target

    cluster = ClusterOptions(kubeconfig, context, namespace)
    if is_cluster_target(cluster, manage):
        from fairlead_cli.cluster.status.command import run as of_cluster

        return of_cluster(model, cluster, output)
    from fairlead_cli.local.status.command import run as of_stack

    return of_stack(model, manage, output)

"""``fairlead status``: models, pools, instances, and one line of advice; of a stack on this machine, or of a cluster."""

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

    Of the stack that `fairlead up` runs here, with the last decisions; or of a cluster: of all models a table, of one its pools,
    pods, what their engines say (by way of the gateways), conditions and last events. A cluster is meant where one is named by
    an option, where this is called as `kubectl fairlead`, and where no stack runs here but a kubeconfig is found.

    Exits 0 when all is well, 1 when something is wrong, 2 on wrong usage, 3 when no gateway, or no API server, can be reached.
    """
    from fairlead_cli.cluster.access.connection import ClusterOptions
    from fairlead_cli.target import is_cluster_target

    way = ClusterOptions(kubeconfig, context, namespace)
    if is_cluster_target(way, manage):
        from fairlead_cli.cluster.status.command import run as of_cluster

        return of_cluster(model, way, output)
    from fairlead_cli.local.status.command import run as of_stack

    return of_stack(model, manage, output)

"""``fairlead check``: is a cluster fit for Fairlead, and is the installation healthy?"""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def check(
    *,
    pre: Annotated[
        bool, Parameter(negative=(), help="Look at the cluster before Fairlead is installed there.")
    ] = False,
    namespace: Annotated[
        str | None,
        Parameter(
            name=["--namespace", "-n"],
            help="The namespace of the installation. Default: found by the chart's labels; with --pre, fairlead.",
        ),
    ] = None,
    wait: Annotated[
        str | None, Parameter(help="Look again until nothing fails, for at most this long, such as 60s.")
    ] = None,
    output: Annotated[Literal["table", "json"], Parameter(name=["--output", "-o"], help="How to say it.")] = "table",
    context: Annotated[str | None, Parameter(help="A context of the kubeconfig. Default: its current one.")] = None,
    kubeconfig: Annotated[
        Path | None, Parameter(help="The kubeconfig. Default: KUBECONFIG, else ~/.kube/config.")
    ] = None,
) -> int:
    """Check a cluster, and say how to fix each failure.

    A line begins with √ (passed), ‼ (a warning), × (failed) or ? (unknown, with the reason).
    Nothing is changed; with --pre, one pod is sent as a dry run.

    Exits 0 when nothing failed, 1 when something did, 2 on wrong usage, 3 when no API server can be
    reached.
    """
    from fairlead_cli.cluster.access.connection import ClusterOptions
    from fairlead_cli.cluster.checks.command import CheckOptions, run

    return run(CheckOptions(ClusterOptions(kubeconfig, context, namespace), pre, wait, output))

"""``fairlead support-bundle``: what somebody who helps needs to know of a cluster, without what nobody should see."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def support_bundle(
    *,
    output: Annotated[
        Path | None,
        Parameter(name=["--output", "-o"], help="The file, or a folder for it. Default: one named by the time, here."),
    ] = None,
    namespace: Annotated[
        str | None,
        Parameter(
            name=["--namespace", "-n"], help="The namespace of the installation. Default: found by the chart's labels."
        ),
    ] = None,
    context: Annotated[str | None, Parameter(help="A context of the kubeconfig. Default: its current one.")] = None,
    kubeconfig: Annotated[
        Path | None, Parameter(help="The kubeconfig. Default: KUBECONFIG, else ~/.kube/config.")
    ] = None,
) -> int:
    """Write a redacted archive of what Fairlead has in a cluster.

    In it: the result of `fairlead check`, versions, models and what was made of them, pods, events, the control plane's logs (their
    end) and what gateways and operators say of themselves; and a manifest of what is in it, and of what could not be had and why.
    Not in it: what Secrets and environment variables hold, API keys, prompts, and the logs of engines. Exits 0 when it was
    written, 2 on wrong usage, 3 when no API server can be reached.
    """
    from fairlead_cli.cluster.access.connection import ClusterOptions
    from fairlead_cli.cluster.bundle.command import run

    return run(ClusterOptions(kubeconfig, context, namespace), output)

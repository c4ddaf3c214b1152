"""``fairlead version``: of the command line, and of what a cluster runs."""

from typing import Annotated

from cyclopts import Parameter

from fairlead_cli.output import OutputFlag
from fairlead_cli.target import InstallationOptions

_DEFAULTS = InstallationOptions()


def version(
    *,
    client: Annotated[bool, Parameter(help="Do not ask the cluster.", negative=())] = False,
    cluster: Annotated[InstallationOptions, Parameter(name="*")] = _DEFAULTS,
    output: OutputFlag = "table",
) -> int:
    """Show the version of this program, and of the installation in a cluster.

    The server's part has the versions and images of the components, and the API versions that the
    cluster serves and stores. Without a kubeconfig only the client is shown.

    Exits 0, 2 on wrong usage, 3 when the API server cannot be reached; the client is shown then,
    too.
    """
    from fairlead_cli.version.command import run

    return run(cluster, output, client_only=client)

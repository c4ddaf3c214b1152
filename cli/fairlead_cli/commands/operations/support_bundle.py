"""``fairlead support-bundle``: a redacted archive of an installation, for support."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairlead_cli.target import InstallationOptions

_DEFAULTS = InstallationOptions()


def support_bundle(
    *,
    out: Annotated[
        Path | None, Parameter(help="The file, or a folder for it. Default: one named by the time, here.")
    ] = None,
    installation: Annotated[InstallationOptions, Parameter(name="*")] = _DEFAULTS,
) -> int:
    """Write a redacted archive of what Fairlead has in a cluster.

    It holds the result of `fairlead check`, versions, models and their objects, pods and events. It
    also holds the end of the control plane's logs, and the pages of gateways and operators. A
    manifest lists the content, and what is missing and why.

    It does not hold values of Secrets and environment variables, API keys, prompts, or logs of
    engines.

    Exits 0 when it was written, 2 on wrong usage, 3 when no API server can be reached.
    """
    from fairlead_cli.cluster.bundle.command import run

    return run(installation.cluster, out)

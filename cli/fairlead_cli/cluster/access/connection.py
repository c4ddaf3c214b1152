"""The connection to a cluster: kubeconfig, context and errors that name both."""

import getpass
import os
import random
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from fairlead import __version__
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import KubeError, Unauthenticated, Unreachable
from fairlead.kube.transport.kubeconfig import ClusterConfig, ClusterConfigError, config_from_kubeconfig, load_config
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock, SystemClock
from fairlead_cli.cluster.access.exec_plugin import run_exec_plugin
from fairlead_cli.errors import ClusterUnreachable
from fairlead_cli.target import ClusterOptions, kubeconfig_paths

CLI_LIMITS: Final = Limits(kube_attempts=2, kube_connect_seconds=4.0, kube_response_seconds=20.0)
"""Short timeouts, because a person waits for the answer."""


def resolve_access(
    options: ClusterOptions, environment: Mapping[str, str] | None = None, home: Path | None = None
) -> ClusterConfig:
    """Returns address and credentials of the cluster; runs login plugins. Raises ClusterUnreachable
    (exit code 3).
    """
    environment = os.environ if environment is None else environment
    home = Path.home() if home is None else home
    try:
        paths = kubeconfig_paths(options, environment, home)
        return (
            config_from_kubeconfig(paths, options.context, run_exec_plugin) if paths else load_config(environment, home)
        )
    except ClusterConfigError as error:
        raise ClusterUnreachable(error.message, hint=_hint(error)) from None


def _hint(error: ClusterConfigError) -> str:
    """Returns what the user can do; an error about a field of the kubeconfig has its own hint."""
    if error.field == "contexts":
        return "`kubectl config get-contexts` lists what there is"
    if error.field in (None, "KUBECONFIG", "current-context"):
        return "name a kubeconfig by --kubeconfig or KUBECONFIG, and one of its contexts by --context"
    return error.hint or "mend it, or choose another by --kubeconfig or --context"


@asynccontextmanager
async def connect(access: ClusterConfig, clock: Clock | None = None) -> AsyncIterator[tuple[KubeApi, str]]:
    """Yields a client of the API server and the server's version.

    Raises ClusterUnreachable when the server does not answer or rejects the credentials.
    """
    chance = random.SystemRandom().random
    async with KubeApi(
        access, clock or SystemClock(), chance, agent=f"fairlead/{__version__}", limits=CLI_LIMITS
    ) as api:
        try:
            version = await api.version()
        except ClusterConfigError as error:
            raise ClusterUnreachable(error.message, hint=error.hint) from None
        except (Unreachable, Unauthenticated) as error:
            raise unreachable_error(error, access) from None
        yield api, version


def unreachable_error(error: KubeError, access: ClusterConfig) -> ClusterUnreachable:
    """Returns the error for the user: which server, from which kubeconfig, and what to try."""
    if isinstance(error, Unauthenticated):
        return ClusterUnreachable(
            f"the API server {access.server} does not accept the credentials of {access.source}",
            hint="log in again: the token or certificate is not accepted, or has run out",
        )
    _, _, words = error.message.partition(": ")
    return ClusterUnreachable(
        f"the API server {access.server} does not answer: {words or error.message}",
        hint=f"the address is from {access.source}; is the cluster up, and reachable from here? "
        "Choose another cluster with --context or --kubeconfig",
    )


def local_user() -> str:
    """Returns who runs this program, for audit records: `USER@HOST`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"

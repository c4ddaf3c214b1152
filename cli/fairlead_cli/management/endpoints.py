"""Management APIs to query: at an address, of the stack on this machine, or of a cluster."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fairlead.kube.resources import name_of
from fairlead.settings import CliSettings, read_settings
from fairlead_cli.addresses import service_url
from fairlead_cli.local.run_directory import newest_stack
from fairlead_cli.target import ClusterOptions, InstallationOptions, is_cluster_target

if TYPE_CHECKING:
    from fairlead_cli.cluster.installation import Installation

ManageFlag = Annotated[
    str | None,
    Parameter(help="A gateway's management address. Default: that of the running `fairlead up`, else of the cluster."),
]
_CLUSTER, _INSTALLATION = ClusterOptions(), InstallationOptions()


@dataclass(frozen=True, slots=True)
class GatewaySource:
    """Flags that select the gateway to query: by its address, or by its cluster."""

    manage: ManageFlag = None
    cluster: Annotated[ClusterOptions, Parameter(name="*")] = _CLUSTER


@dataclass(frozen=True, slots=True)
class GatewaysSource:
    """Flags that select the gateways to query: by an address, or by their installation."""

    manage: ManageFlag = None
    installation: Annotated[InstallationOptions, Parameter(name="*")] = _INSTALLATION


@dataclass(frozen=True, slots=True)
class ManagementEndpoint:
    """A management API. ``name`` is for people; ``url`` returns the address, and forwards a port
    for it if needed.

    installation: whose gateway it is, in a cluster.
    """

    name: str
    url: Callable[[], str]
    token: str | None
    installation: "Installation | None" = None

    def qualify_model(self, name: str) -> str:
        """Returns the name by which a gateway knows a model."""
        return name if self.installation is None else self.installation.qualify_model(name)


@contextmanager
def open_endpoints(manage: str | None, cluster: ClusterOptions) -> Iterator[Sequence[ManagementEndpoint]]:
    """Yields the endpoint of ``manage`` or of the stack on this machine, or those of a cluster.

    Raises StackUnreachable, ClusterUnreachable, or BadInput that names a missing permission.
    """
    token = read_settings(CliSettings, os.environ).manage_token
    if not is_cluster_target(cluster, manage):
        url = service_url(manage, flag="--manage") if manage else newest_stack("--manage").manage
        yield [ManagementEndpoint(url, lambda: url, token)]
        return
    from fairlead_cli.cluster.installation import open_installation

    with open_installation(cluster) as installation:
        yield gateway_endpoints(installation, token)


def gateway_endpoints(installation: "Installation", token: str | None) -> Sequence[ManagementEndpoint]:
    """Returns the management APIs of all gateways of a cluster.

    token: used instead of that of the installation.

    Raises ClusterUnreachable when no gateway is ready, BadInput that names a missing permission.
    """
    token = token or installation.manage_token()
    return [
        ManagementEndpoint(f"gateway {name_of(pod)}", partial(installation.manage_url, pod), token, installation)
        for pod in installation.gateway_pods()
    ]

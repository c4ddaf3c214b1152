"""The gateway of a chat: at an address, in the stack on this machine, or in a cluster."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from fairlead.settings import CliSettings, read_settings
from fairlead_cli.addresses import service_url
from fairlead_cli.errors import StackUnreachable
from fairlead_cli.local.run_directory import RunningStack, newest_stack, running_stacks
from fairlead_cli.management.endpoints import ManagementEndpoint, gateway_endpoints
from fairlead_cli.target import ClusterOptions, is_cluster_target


@dataclass(frozen=True, slots=True)
class ChatGateway:
    """A gateway: its URL, the API key, and its management APIs, which ``/why`` opens.

    is_forwarded: its port was forwarded to this machine, so that no certificate names its address.
    qualify_model: returns the name by which the gateway knows a model.
    """

    url: str
    key: str | None
    endpoints: Callable[[], Sequence[ManagementEndpoint]]
    is_forwarded: bool = False
    qualify_model: Callable[[str], str] = str


@contextmanager
def open_gateway(url: str | None, manage: str | None, cluster: ClusterOptions) -> Iterator[ChatGateway]:
    """Yields the gateway at ``url``, of a cluster, or of the newest stack on this machine.

    manage: management address of the gateway, for ``/why``.

    Raises StackUnreachable or ClusterUnreachable, and BadInput for an invalid address or a missing
    permission.
    """
    settings = read_settings(CliSettings, os.environ)
    if not is_cluster_target(cluster, url or manage, "--url" if url else "--manage"):
        address = service_url(url, flag="--url") if url else newest_stack().url
        yield ChatGateway(address, settings.api_key, lambda: [_local_endpoint(address, manage, settings.manage_token)])
        return
    from fairlead_cli.cluster.installation import open_installation

    with open_installation(cluster) as installation:
        key = settings.api_key or installation.api_key()
        endpoints = partial(gateway_endpoints, installation, settings.manage_token)
        url = installation.client_url()
        yield ChatGateway(url, key, endpoints, is_forwarded=True, qualify_model=installation.qualify_model)


def local_stack(url: str) -> RunningStack | None:
    """Returns the running stack of this user whose gateway is at ``url``, or None."""
    return next((stack for stack in running_stacks() if stack.url == url.rstrip("/").removesuffix("/v1")), None)


def _local_endpoint(url: str, manage: str | None, token: str | None) -> ManagementEndpoint:
    stack = local_stack(url)
    if not manage and stack is None:
        raise StackUnreachable("the management address of this gateway is not known", hint="give it with --manage")
    address = service_url(manage, flag="--manage") if manage else stack.manage if stack else ""
    return ManagementEndpoint(address, lambda: address, token)

"""Chooses where the ModelTenants are: in a file, or in a cluster."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead.settings import CliSettings, read_settings
from fairlead_cli.addresses import service_url
from fairlead_cli.cluster.installation import Installation, open_installation
from fairlead_cli.local.run_directory import RunningStack, stacks_at
from fairlead_cli.management.client import ManagementEndpoint, gateway_endpoints
from fairlead_cli.target import ClusterOptions, ContextFlag, InstallationFlag, KubeconfigFlag, is_cluster_target
from fairlead_cli.tenants.file_store import FileTenantStore
from fairlead_cli.tenants.store import TenantStore

FileFlag = Annotated[
    Path | None,
    Parameter(name=["--file", "-f"], help="A file of ModelTenants, instead of a cluster. FAIRLEAD_KEY_PEPPER is set."),
]
RevokedFlag = Annotated[
    Path | None, Parameter(help="With --file: the file of revoked keys, to which the digest is added.")
]
ManageFlag = Annotated[
    str | None,
    Parameter(
        help="A gateway's management address, for the last use of keys. Without --file, that of a `fairlead up`."
    ),
]


@dataclass(frozen=True, slots=True)
class TenantFlags:
    """The flags of all verbs about tenants and keys."""

    file: FileFlag = None
    context: ContextFlag = None
    kubeconfig: KubeconfigFlag = None
    install_namespace: InstallationFlag = None

    @property
    def cluster(self) -> ClusterOptions:
        return ClusterOptions(self.kubeconfig, self.context, install_namespace=self.install_namespace)


TenantFlagsParameter = Annotated[TenantFlags, Parameter(name="*")]
DEFAULT_FLAGS = TenantFlags()


@dataclass(frozen=True, slots=True)
class TenantSource:
    """A store of ModelTenants, and the gateways that use them.

    manage: management address of a gateway that reads the file.
    """

    store: TenantStore
    manage: str | None
    _installation: "object | None" = None

    def endpoints(self) -> Sequence[ManagementEndpoint]:
        """Returns the management APIs of the gateways; none for a file without `manage`."""
        token = read_settings(CliSettings, os.environ).manage_token
        if self.manage is not None:
            url = service_url(self.manage, flag="--manage")
            return [ManagementEndpoint(url, lambda: url, token)]
        if isinstance(self._installation, Installation):
            return gateway_endpoints(self._installation, token)
        return []


@contextmanager
def open_tenants(
    options: TenantFlags, *, revoked: Path | None = None, manage: str | None = None, finds_stack: bool = False
) -> Iterator[TenantSource]:
    """Yields the tenants of a file, or of a cluster.

    revoked: the file of revoked keys; None for a cluster.
    manage: management address of a gateway that reads the file.
    finds_stack: without a file and a cluster, those of the stack at `manage`, else of the newest
        one on this machine.

    Raises BadInput for options that exclude each other and without any, ClusterUnreachable.
    """
    if options.file is not None:
        if options.cluster.names_cluster:
            raise BadInput(
                "--file names a file, and other options name a cluster", field="--file", hint="give one of the two"
            )
        yield TenantSource(FileTenantStore(options.file, revoked, os.environ), manage)
        return
    if revoked is not None:
        raise BadInput("--revoked belongs to a file of tenants", field="--revoked", hint="give it together with --file")
    stacks = stacks_at(manage) if finds_stack else []
    is_named = manage is not None and bool(stacks) and not options.cluster.names_cluster
    if is_named or not is_cluster_target(options.cluster, None):
        if stacks:
            yield TenantSource(FileTenantStore(_tenant_file(stacks[0]), None, os.environ), manage or stacks[0].manage)
            return
        raise BadInput(
            "neither a file nor a cluster was named",
            field="--file",
            hint="name the file of ModelTenants with --file, or a cluster with --kubeconfig or --context",
        )
    from fairlead_cli.tenants.cluster_store import ClusterTenantStore

    with open_installation(options.cluster) as installation:
        yield TenantSource(ClusterTenantStore(installation), manage, installation)


def _tenant_file(stack: RunningStack) -> Path:
    """Returns the file of ModelTenants of a stack. Raises BadInput if it has none, or several."""
    if not stack.tenant_files:
        raise BadInput(
            f"the stack at {stack.url} asks for no API key: it was given no ModelTenant",
            field="--file",
            hint="give `fairlead up` a file with ModelTenants, or name one here with --file",
        )
    if len(stack.tenant_files) > 1:
        hint = f"name one of them with --file: {', '.join(stack.tenant_files)}"
        raise BadInput(f"the stack at {stack.url} has several files of ModelTenants", field="--file", hint=hint)
    return Path(stack.tenant_files[0])

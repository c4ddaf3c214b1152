"""The flags that say where tenants are: in a file, or in a cluster."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fairlead_cli.target import ContextFlag, InstallationFlag, KubeconfigFlag

if TYPE_CHECKING:
    from fairlead_cli.tenants.selection import TenantsOptions

FileFlag = Annotated[
    Path | None,
    Parameter(name=["--file", "-f"], help="A file of ModelTenants, instead of a cluster. FAIRLEAD_KEY_PEPPER is set."),
]
RevokedFlag = Annotated[
    Path | None, Parameter(help="With --file: the file of revoked keys, to which the digest is added.")
]
ManageFlag = Annotated[
    str | None, Parameter(help="With --file: management address of a gateway, for the last use of keys.")
]


@dataclass(frozen=True, slots=True)
class TenantFlags:
    """The flags of all verbs about tenants and keys."""

    file: FileFlag = None
    context: ContextFlag = None
    kubeconfig: KubeconfigFlag = None
    install_namespace: InstallationFlag = None

    def options(self, *, revoked: Path | None = None, manage: str | None = None) -> "TenantsOptions":
        """Returns where the tenants are."""
        from fairlead_cli.target import ClusterOptions
        from fairlead_cli.tenants.selection import TenantsOptions

        cluster = ClusterOptions(self.kubeconfig, self.context, install_namespace=self.install_namespace)
        return TenantsOptions(cluster, self.file, revoked, manage)


TenantFlagsParameter = Annotated[TenantFlags, Parameter(name="*")]
DEFAULT_FLAGS = TenantFlags()

"""``fairlead keys``: creates, lists, rotates and revokes the API keys of tenants."""

from typing import Annotated

from cyclopts import Parameter

from fairlead_cli.commands.access.flags import DEFAULT_FLAGS, ManageFlag, RevokedFlag, TenantFlagsParameter
from fairlead_cli.output import OutputFlag

_Tenant = Annotated[str, Parameter(help="The name of a ModelTenant.")]
_Key = Annotated[str, Parameter(help="The name of a key of the tenant.")]
_Expires = Annotated[
    str | None,
    Parameter(help="When the key expires: a duration from now such as 90d, or a date. Default: never."),
]


def keys_create(
    tenant: _Tenant,
    name: _Key,
    *,
    expires: _Expires = None,
    flags: TenantFlagsParameter = DEFAULT_FLAGS,
    output: OutputFlag = "table",
) -> int:
    """Create an API key of a tenant, and print it once.

    Only the key goes to standard output, and only now: the tenant gets its digest alone. Gateways
    accept it within two seconds.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no cluster can be reached.
    """
    from fairlead_cli.keys.command import KeyOptions, run_create

    return run_create(flags.options(), KeyOptions(tenant, name, output, expires=expires))


def keys_list(
    tenant: Annotated[str | None, Parameter(help="Only the keys of this ModelTenant.")] = None,
    *,
    flags: TenantFlagsParameter = DEFAULT_FLAGS,
    manage: ManageFlag = None,
    output: OutputFlag = "table",
) -> int:
    """Show API keys with their digests, expiry and last use.

    The last use is the latest that any gateway counted since it started, to the minute.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no cluster can be reached.
    """
    from fairlead_cli.keys.command import run_list

    return run_list(flags.options(manage=manage), tenant, output)


def keys_rotate(
    tenant: _Tenant,
    name: _Key,
    *,
    overlap: Annotated[str, Parameter(help="How long the old key stays valid, such as 24h; 0s: not at all.")] = "24h",
    expires: _Expires = None,
    flags: TenantFlagsParameter = DEFAULT_FLAGS,
    output: OutputFlag = "table",
) -> int:
    """Replace an API key by a new one of the same name. The old one stays valid for a while.

    The new key is printed once. Limits of this name hold for both together.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no cluster can be reached.
    """
    from fairlead_cli.keys.command import KeyOptions, run_rotate

    return run_rotate(flags.options(), KeyOptions(tenant, name, output, expires=expires, overlap=overlap))


def keys_revoke(
    tenant: _Tenant,
    name: _Key,
    *,
    digest: Annotated[
        str | None, Parameter(help="Only the key whose digest begins so. Default: all keys of the name.")
    ] = None,
    revoked: RevokedFlag = None,
    flags: TenantFlagsParameter = DEFAULT_FLAGS,
    output: OutputFlag = "table",
) -> int:
    """Revoke the API keys of a name. Gateways refuse them within two seconds.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no cluster can be reached.
    """
    from fairlead_cli.keys.command import KeyOptions, run_revoke

    return run_revoke(flags.options(revoked=revoked), KeyOptions(tenant, name, output, digest=digest))

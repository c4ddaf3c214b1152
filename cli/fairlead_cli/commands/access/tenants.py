"""``fairlead tenants``: shows who may call models, with which limits."""

from typing import Annotated

from cyclopts import Parameter

from fairlead_cli.commands.access.flags import DEFAULT_FLAGS, ManageFlag, TenantFlagsParameter
from fairlead_cli.output import OutputFlag


def tenants_list(*, flags: TenantFlagsParameter = DEFAULT_FLAGS, output: OutputFlag = "table") -> int:
    """Show the tenants: tier, weight, models, keys and limits.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no cluster can be reached.
    """
    from fairlead_cli.tenants.command import run_list

    return run_list(flags.options(), output)


def tenants_show(
    name: Annotated[str, Parameter(help="The name of a ModelTenant.")],
    *,
    flags: TenantFlagsParameter = DEFAULT_FLAGS,
    manage: ManageFlag = None,
    output: OutputFlag = "table",
) -> int:
    """Show one tenant with its models, limits, budget and keys.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no cluster can be reached.
    """
    from fairlead_cli.tenants.command import run_show

    return run_show(flags.options(manage=manage), name, output)

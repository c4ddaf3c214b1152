"""``fairlead tenants``: shows who may call models, with which limits."""

import sys
from typing import Annotated

from cyclopts import Parameter

from fairlead.errors import plain_text
from fairlead.kube.resources import Manifest, metadata_of
from fairlead.runtime.clock import SystemClock
from fairlead_cli.console import terminal_text
from fairlead_cli.errors import ClusterUnreachable
from fairlead_cli.exit_codes import OK, UNREACHABLE, report_failure
from fairlead_cli.keys.text_output import ListedKey
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.tenants.budget_use import read_budget
from fairlead_cli.tenants.key_use import read_key_uses
from fairlead_cli.tenants.selection import DEFAULT_FLAGS, ManageFlag, TenantFlagsParameter, open_tenants
from fairlead_cli.tenants.store import keys_of
from fairlead_cli.tenants.text_output import render_tenant, render_tenants


def tenants_list(*, flags: TenantFlagsParameter = DEFAULT_FLAGS, output: OutputFlag = "table") -> int:
    """Show the tenants: tier, weight, models, keys and limits.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no cluster can be reached.
    """
    try:
        with open_tenants(flags.options()) as place:
            tenants = place.store.tenants()
    except ClusterUnreachable as error:
        return report_failure("tenants", error, UNREACHABLE)
    if is_document(output):
        print(format_document({"tenants": [_to_plain(tenant) for tenant in tenants]}, output))
    else:
        print(terminal_text(render_tenants(tenants, is_wide=output == "wide")))
    return OK


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
    try:
        with open_tenants(flags.options(manage=manage)) as place:
            tenant = place.store.tenant(name)
            uses = read_key_uses(place)
            budget = read_budget(place, name) if (tenant.get("spec") or {}).get("budget") else None
    except ClusterUnreachable as error:
        return report_failure("tenants", error, UNREACHABLE)
    for problem in uses.problems:
        print(plain_text(f"last use unknown: {problem}"), file=sys.stderr)
    if is_document(output):
        keys = [ListedKey(name, entry).to_plain(uses) for entry in keys_of(tenant)]
        print(format_document({**_to_plain(tenant), "keys": keys}, output))
    else:
        print(terminal_text(render_tenant(tenant, uses, SystemClock().wall(), budget)))
    return OK


def _to_plain(tenant: Manifest) -> Manifest:
    return {"name": metadata_of(tenant)["name"], "spec": tenant.get("spec") or {}}

"""``fairlead tenants``: shows who may call models, with which limits."""

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from fairlead.api.spec.tenant.spec import AMOUNTS
from fairlead.errors import plain_text
from fairlead.kube.resources import Manifest, metadata_of, name_of
from fairlead.management_api import BudgetOut
from fairlead.runtime.clock import SystemClock
from fairlead_cli.console import terminal_text
from fairlead_cli.exit_codes import OK, UNREACHABLE, ClusterUnreachable, report_failure
from fairlead_cli.formatting import UNKNOWN, align_columns, pluralize
from fairlead_cli.keys.command import ListedKey, render_keys
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.tenants.budget_use import KeyUses, describe_budget, read_budget, read_key_uses
from fairlead_cli.tenants.selection import DEFAULT_FLAGS, ManageFlag, TenantFlagsParameter, open_tenants
from fairlead_cli.tenants.store import keys_of

_SHOWN_MODELS = 3


def tenants_list(
    *, flags: TenantFlagsParameter = DEFAULT_FLAGS, manage: ManageFlag = None, output: OutputFlag = "table"
) -> int:
    """Show the tenants: tier, weight, models, keys and limits.

    Exits 0 when done, 2 on wrong usage or without a permission, 3 when no cluster can be reached.
    """
    try:
        with open_tenants(flags, manage=manage, finds_stack=True) as source:
            tenants = source.store.tenants()
    except ClusterUnreachable as error:
        return report_failure(error, UNREACHABLE)
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
        with open_tenants(flags, manage=manage, finds_stack=True) as source:
            tenant = source.store.tenant(name)
            uses = read_key_uses(source)
            budget = read_budget(source, name) if (tenant.get("spec") or {}).get("budget") else None
    except ClusterUnreachable as error:
        return report_failure(error, UNREACHABLE)
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


def render_tenants(tenants: Sequence[Manifest], *, is_wide: bool) -> str:
    """Returns a table of tenants. ``is_wide``: with all models and limits."""
    if not tenants:
        return "no ModelTenant"
    rows = [("NAME", "TIER", "WEIGHT", "MODELS", "KEYS", "LIMITS")]
    for tenant in tenants:
        spec = _spec(tenant)
        limits = describe_limits(spec)
        keys = [*keys_of(tenant), *(spec.get("subjects") or [])]
        rows.append(
            (
                name_of(tenant),
                str(spec.get("tier") or "Standard"),
                str(spec.get("weight") or 1),
                _describe_models(spec, is_wide=is_wide),
                str(len(keys)),
                ("; ".join(limits) if is_wide else pluralize(len(limits), "limit")) if limits else UNKNOWN,
            )
        )
    return align_columns(rows)


def render_tenant(tenant: Manifest, uses: KeyUses, now: float, budget: BudgetOut | None = None) -> str:
    """Returns one tenant in full.

    budget: None if no gateway knows its state.
    """
    spec = _spec(tenant)
    fields = [
        ("Tenant:", name_of(tenant)),
        ("Tier:", f"{spec.get('tier') or 'Standard'}, weight {spec.get('weight') or 1}"),
        ("Models:", _describe_models(spec, is_wide=True)),
        (
            "Enforcement:",
            f"{spec.get('enforcement') or 'Estimated'}, without Redis: {spec.get('withoutRedis') or 'Refuse'}",
        ),
        ("Cache:", _describe_cache(spec)),
    ]
    fields += [("Limit:", text) for text in describe_limits(spec) or ["none"]]
    if spec.get("budget"):
        fields.append(("Budget:", describe_budget(budget)))
    fields += [
        ("Subject:", f"{subject.get('claim')} = {subject.get('value')} of {subject.get('issuer')}")
        for subject in spec.get("subjects") or []
    ]
    keys = [ListedKey(name_of(tenant), entry) for entry in keys_of(tenant)]
    return f"{align_columns(fields)}\n\n{render_keys(keys, uses, now, is_wide=False)}"


def describe_limits(spec: Mapping[str, Any]) -> list[str]:
    """Returns limits and budget of a spec, each as one text."""
    texts = []
    for limit in spec.get("limits") or []:
        amounts = ", ".join(
            f"{limit[name]} {'USD' if name == 'usd' else name}" for name in AMOUNTS if limit.get(name) is not None
        )
        scope = "".join(f" of the {name} {limit[name]}" for name in ("key", "model") if limit.get(name))
        per = f" per {str(limit['per']).lower()}" if limit.get("per") else ""
        texts.append(f"{amounts}{per}{scope}")
    if budget := spec.get("budget"):
        on_exceeded = " (warns)" if budget.get("onExceeded") == "Warn" else ""
        texts.append(f"{budget.get('usd')} USD per {str(budget.get('per') or 'Month').lower()}{on_exceeded}")
    return texts


def _describe_models(spec: Mapping[str, Any], *, is_wide: bool) -> str:
    models = spec.get("models")
    if models is None:
        return "all"
    shown = models if is_wide else models[:_SHOWN_MODELS]
    more = f" and {len(models) - len(shown)} more" if len(models) > len(shown) else ""
    return (", ".join(map(str, shown)) or "none") + more


def _describe_cache(spec: Mapping[str, Any]) -> str:
    sharing = str(spec.get("cacheSharing") or "Tenant")
    return f"{sharing} {spec['cacheGroup']}" if spec.get("cacheGroup") else sharing


def _spec(tenant: Manifest) -> Mapping[str, Any]:
    spec = tenant.get("spec")
    return spec if isinstance(spec, dict) else {}

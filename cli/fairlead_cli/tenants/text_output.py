"""Tenants for people: a table of all, and one in full."""

from collections.abc import Mapping, Sequence
from typing import Any

from fairlead.kube.resources import Manifest, name_of
from fairlead_cli.formatting import UNKNOWN, align_columns, pluralize
from fairlead_cli.keys.text_output import ListedKey, render_keys
from fairlead_cli.management.api_types import BudgetUse
from fairlead_cli.tenants.budget_use import describe_budget
from fairlead_cli.tenants.key_use import KeyUses
from fairlead_cli.tenants.store import keys_of

_SHOWN_MODELS = 3
_LIMIT_UNITS = ("requests", "tokens", "inputTokens", "outputTokens", "concurrency", "bytesInFlight")


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


def render_tenant(tenant: Manifest, uses: KeyUses, now: float, budget: BudgetUse | None = None) -> str:
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
        amounts = ", ".join(f"{limit[unit]} {unit}" for unit in _LIMIT_UNITS if limit.get(unit) is not None)
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

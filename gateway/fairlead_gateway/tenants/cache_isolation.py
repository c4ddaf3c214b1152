"""Models that cannot keep KV caches of tenants apart, since their engines take no cache salt."""

from collections.abc import Iterable, Mapping
from typing import Final

from fairlead.engines.facts import kinds_with
from fairlead.fleet.model import EXTERNAL_API, Model, RequestPolicy
from fairlead.tenants.model import CacheSharing, Tenant

SALT_FIELD: Final = "cache_salt"
SALTED_ENGINES: Final = kinds_with(lambda facts: facts.takes_cache_salt)
"""The types of engines with the field `cache_salt`. Of others that is not known."""
_ISOLATED_ENGINES: Final = SALTED_ENGINES | {EXTERNAL_API}
_MAX_WARNINGS: Final = 3


def has_cache_salt(policy: RequestPolicy) -> bool:
    """Returns whether all engines of a model take a cache salt.

    A model whose engines are not known yet counts as one that does. So does an API that others run:
    its cache is no part of the cluster.
    """
    return SALT_FIELD in policy.allowed_fields or policy.engines <= _ISOLATED_ENGINES


def shared_caches(tenants: Mapping[str, Tenant], models: Mapping[str, Model]) -> list[str]:
    """Returns a warning for each model whose engines share their cache among all clients, although
    a tenant that may use it wants isolation. Of many, the first few.
    """
    found = []
    for key, model in sorted(models.items()):
        if has_cache_salt(model.requests):
            continue
        isolated = _isolated_users(tenants.values(), key)
        if isolated:
            others = len(isolated) - 1
            more = f" and {others} more tenant{'s' * (others > 1)}" if others else ""
            kinds = ", ".join(sorted(model.requests.engines - _ISOLATED_ENGINES))
            found.append(
                f"engines of {key} share cached prompts among all clients, though tenant {isolated[0]}{more}"
                f" should be isolated: no {SALT_FIELD} is known of type {kinds}"
            )
    more_models = len(found) - _MAX_WARNINGS
    return [*found[:_MAX_WARNINGS], *([f"and {more_models} more models with shared caches"] if more_models > 0 else [])]


def _isolated_users(tenants: Iterable[Tenant], key: str) -> list[str]:
    return sorted(
        tenant.name for tenant in tenants if tenant.cache_sharing is not CacheSharing.CLUSTER and tenant.may_use(key)
    )

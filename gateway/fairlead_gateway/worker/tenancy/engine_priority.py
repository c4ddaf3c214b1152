"""The field `priority` of a request: engines that start requests by it get the tenant's tier.

vLLM starts the smallest number first, SGLang the largest. A client's own priority never reaches an
engine, since any client could go before all others with it.
"""

from functools import lru_cache
from typing import Final

from fairlead.fleet.model import RequestPolicy
from fairlead_gateway.worker.openai.field_policy import known_fields

FIELD: Final = "priority"
_LOWEST_TIER: Final = 2
COPY_TIER: Final = _LOWEST_TIER + 1
"""The tier of copies for a route's shadow, behind those of tenants."""
_SMALLEST_FIRST: Final = frozenset({"vllm", "sim"})
_LARGEST_FIRST: Final = frozenset({"sglang"})


def engine_priority(tier: int, policy: RequestPolicy, path: str) -> bytes | None:
    """Returns the priority of a tier as JSON; None if the engines of the model take none there."""
    return _priority(tier, policy.engines, path) if policy.sets_priority else None


@lru_cache(maxsize=256)
def _priority(tier: int, engines: frozenset[str], path: str) -> bytes | None:
    if not engines or any(FIELD not in (known_fields(engine, path) or ()) for engine in engines):
        return None
    if engines <= _SMALLEST_FIRST:
        return b"%d" % tier
    return b"%d" % (_LOWEST_TIER - tier) if engines <= _LARGEST_FIRST else None

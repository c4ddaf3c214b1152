"""A tenant as requests read it: what its table says, in the terms of a worker.

Why: the module of `Tenant` is not compiled, and each attribute that is read there costs 140
instructions. A policy is computed once per tenant and version of the table.
"""

from typing import Final

from fairlead.tenants.model import CacheSharing, Tenant, Tier
from fairlead_gateway.admission.caller_bounds import CallerClass
from fairlead_gateway.admission.request_queue import TIER_WEIGHTS
from fairlead_gateway.caller_key import Caller
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.routing.prefix.prefix_hash import ChainStarts
from fairlead_gateway.worker.openai.prefix_key import CacheScope, build_route_request
from fairlead_gateway.worker.openai.request import ModelRequest
from fairlead_gateway.worker.tenancy.cache_salt import apply_scope, scope_of

_MAX_CACHED: Final = 16_384
_TIER_NUMBERS: Final = {Tier.INTERACTIVE: 0, Tier.STANDARD: 1, Tier.BATCH: 2}


class TenantPolicy:
    """The treatment of the requests of one tenant.

    tier: 0 goes before 1.
    weight: share against other tenants, of any tier.
    caller_class: tier and weight for the bounds of queues.
    scope: the requests that share cached blocks with it; None: all of the cluster.
    is_sheddable: its requests are refused early if they cannot be served in time.
    shows_placement: responses name the instance, the reason, times and cached tokens.
    """

    __slots__ = ("caller_class", "is_sheddable", "scope", "shows_placement", "tenant", "tier", "weight")

    def __init__(self, tenant: Tenant, scope: CacheScope | None) -> None:
        self.tenant = tenant
        self.tier: int = _TIER_NUMBERS[tenant.tier]
        self.weight: float = tenant.weight * TIER_WEIGHTS[self.tier]
        self.caller_class = CallerClass(self.tier, self.weight)
        self.scope = scope
        self.is_sheddable: bool = tenant.tier is Tier.BATCH
        self.shows_placement: bool = tenant.shows_placement


NO_TENANT: Final = TenantPolicy(Tenant("", cache_sharing=CacheSharing.CLUSTER), None)
"""The policy of a gateway that asks for no API key."""


class TenantPolicies:
    """The policies of all tenants, by name; each is replaced when its tenant is.

    secret: the installation's.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._chain_starts = ChainStarts(secret)
        self._policies: dict[str, TenantPolicy] = {}

    def of(self, caller: Caller | None) -> TenantPolicy:
        """Returns the policy of a caller's tenant."""
        if caller is None:
            return NO_TENANT
        policy = self._policies.get(caller.name)
        if policy is None or policy.tenant is not caller.tenant:
            if len(self._policies) >= _MAX_CACHED:
                self._policies.clear()
            policy = self._policies[caller.name] = TenantPolicy(caller.tenant, scope_of(caller.tenant, self._secret))
        return policy

    def build_route_request(self, request: ModelRequest, http_request: HttpRequest, request_id: str) -> RouteRequest:
        """Isolates the request as its tenant demands, and returns what routing needs of it."""
        scope, head = self.of(http_request.caller).scope, http_request.head
        if scope is not None:
            apply_scope(request, scope, head.path)
        return build_route_request(request, head, request_id, self._chain_starts, scope)

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
from fairlead_gateway.worker.openai.field_policy import remove_fields
from fairlead_gateway.worker.openai.json_edit import contains_any, prepend_members, set_members
from fairlead_gateway.worker.openai.prefix_key import CacheScope, build_route_request
from fairlead_gateway.worker.openai.request import ModelRequest
from fairlead_gateway.worker.tenancy import cache_salt, engine_priority
from fairlead_gateway.worker.tenancy.cache_salt import apply_scope, scope_of, takes_cache_salt

_MAX_CACHED: Final = 16_384
_PRIORITY: Final = frozenset({engine_priority.FIELD})
_FIELD_SIGNS: Final = (cache_salt.FIELD.encode(), b'"priority"', b"\\u")
_TIER_NUMBERS: Final = {Tier.INTERACTIVE: 0, Tier.STANDARD: 1, Tier.BATCH: 2}


class TenantPolicy:
    """The treatment of the requests of one tenant.

    tier: 0 goes before 1.
    weight: share against other tenants, of any tier.
    caller_class: tier and weight for the bounds of queues.
    scope: the requests that share cached blocks with it; None: all of the cluster.
    is_sheddable: its requests are refused early if they cannot be served in time.
    shows_placement: responses name the instance, the reason, times and cached tokens.
    may_wake: its requests start a model that has no instance.
    """

    __slots__ = ("caller_class", "is_sheddable", "may_wake", "scope", "shows_placement", "tenant", "tier", "weight")

    def __init__(self, tenant: Tenant, scope: CacheScope | None) -> None:
        self.tenant = tenant
        self.tier: int = _TIER_NUMBERS[tenant.tier]
        self.weight: float = tenant.weight * TIER_WEIGHTS[self.tier]
        self.caller_class = CallerClass(self.tier, self.weight)
        self.scope = scope
        self.is_sheddable: bool = tenant.tier is Tier.BATCH
        self.shows_placement: bool = tenant.shows_placement
        self.may_wake: bool = tenant.may_wake_models


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
        head = http_request.head
        if http_request.caller is None:
            return build_route_request(request, head, request_id, self._chain_starts)
        policy = self.of(http_request.caller)
        _set_fields(request, policy, head.path)
        return build_route_request(request, head, request_id, self._chain_starts, policy.scope)


def _set_fields(request: ModelRequest, policy: TenantPolicy, path: str) -> None:
    """Sets salt and priority of the tenant in a request, and removes the client's own priority."""
    changes: dict[str, bytes] = {}
    rules, scope = request.model.requests, policy.scope
    if scope is not None:
        salt = apply_scope(request, scope)
        if takes_cache_salt(rules, path):
            changes[cache_salt.FIELD] = b'"%b"' % salt.encode()
    priority = engine_priority.engine_priority(policy.tier, rules, path)
    if priority is not None:
        changes[engine_priority.FIELD] = priority
    if not request.body:
        return
    if engine_priority.FIELD in rules.allowed_fields and priority is None:
        request.body = remove_fields(request.body, _PRIORITY)
    if not changes:
        return
    # A scanned chat has neither field. A body without these signs has none, however it is spelled.
    if request.decoded_fields is None or not contains_any(request.body, _FIELD_SIGNS):
        request.body = prepend_members(request.body, changes)
    else:
        request.body = set_members(request.body, changes)

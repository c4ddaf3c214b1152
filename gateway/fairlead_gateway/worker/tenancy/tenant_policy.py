"""A tenant as requests read it: what its table says, in the terms of a worker.

Why: the module of `Tenant` is not compiled, and each attribute that is read there costs 140
instructions. A policy is computed once per tenant and version of the table.
"""

from typing import Final

from fairlead.fleet.model import RequestPolicy
from fairlead.tenants.model import CacheSharing, Enforcement, Tenant, Tier
from fairlead_gateway.admission.caller_bounds import CallerClass
from fairlead_gateway.admission.request_queue import TIER_WEIGHTS
from fairlead_gateway.caller_key import ANONYMOUS, Caller, CallerKey, caller_key
from fairlead_gateway.errors import ExternalRefused
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.routing.load.prompt_sizes import PromptSizes
from fairlead_gateway.routing.prefix.prefix_hash import ChainStarts
from fairlead_gateway.worker.openai.field_policy import remove_fields
from fairlead_gateway.worker.openai.json_edit import (
    contains_any,
    members_text,
    prepend_text,
    set_members,
)
from fairlead_gateway.worker.openai.prefix_key import CacheScope, build_route_request
from fairlead_gateway.worker.openai.request import ModelRequest
from fairlead_gateway.worker.tenancy import cache_salt, engine_priority
from fairlead_gateway.worker.tenancy.cache_salt import apply_scope, scope_of, takes_cache_salt

_MAX_CACHED: Final = 16_384
_MAX_PATHS: Final = 16
"""The number of models and paths that one tenant uses at the same time."""
_PRIORITY: Final = frozenset({engine_priority.FIELD})
_FIELD_SIGNS: Final = (cache_salt.FIELD.encode(), b'"priority"', b"\\u")
_TIER_NUMBERS: Final = {Tier.INTERACTIVE: 0, Tier.STANDARD: 1, Tier.BATCH: 2}


class _PathFields:
    """Members that a tenant adds to the bodies of requests of a model on a path.

    takes_salt: the engines have the field of the salt there.
    """

    __slots__ = ("members", "path", "rules", "takes_salt")

    def __init__(self, rules: RequestPolicy, path: str, members: bytes, takes_salt: bool) -> None:
        self.rules = rules
        self.path = path
        self.members = members
        self.takes_salt = takes_salt


class TenantPolicy:
    """The treatment of the requests of one tenant.

    tier: 0 goes before 1.
    weight: share against other tenants, of any tier.
    caller_class: tier and weight for the bounds of queues.
    scope: the requests that share cached blocks with it; None: all of the cluster.
    is_sheddable: its requests are refused early if they cannot be served in time.
    shows_placement: responses name the instance, the reason, times and cached tokens, unless these
        are of others as well (`shows_cached`).
    may_wake: its requests start a model that has no instance.
    has_limits: what it uses is limited.
    refuses_external: its requests do not leave the cluster.
    """

    __slots__ = (
        "_paths",
        "caller_class",
        "has_limits",
        "is_sheddable",
        "is_strict",
        "may_wake",
        "refuses_external",
        "scope",
        "shows_placement",
        "tenant",
        "tier",
        "weight",
    )

    def __init__(self, tenant: Tenant, scope: CacheScope | None) -> None:
        self.tenant = tenant
        self.tier: int = _TIER_NUMBERS[tenant.tier]
        self.weight: float = tenant.weight * TIER_WEIGHTS[self.tier]
        self.caller_class = CallerClass(self.tier, self.weight)
        self.scope = scope
        self.is_sheddable: bool = tenant.tier is Tier.BATCH
        self.shows_placement: bool = tenant.shows_placement
        self.may_wake: bool = tenant.may_wake_models
        self.has_limits: bool = bool(tenant.limits)
        self.is_strict: bool = self.has_limits and tenant.enforcement is Enforcement.STRICT
        self.refuses_external: bool = not tenant.may_leave_cluster
        self._paths: list[_PathFields] = []

    def shows_cached(self, rules: RequestPolicy, path: str) -> bool:
        """Returns whether responses have their counts of cached tokens.

        They do not if the engine takes no salt on the path: they would show the prompts of others.
        """
        if self.scope is None or not self.shows_placement:
            return self.shows_placement
        return self._fields(rules, path).takes_salt

    def members(self, rules: RequestPolicy, path: str) -> bytes:
        """Returns the salt and the priority of the tenant, as members of a body; empty if engines
        take neither.
        """
        return self._fields(rules, path).members

    def _fields(self, rules: RequestPolicy, path: str) -> _PathFields:
        """Returns what the tenant sets in requests of a model on a path, which is made once."""
        for known in self._paths:
            if known.rules is rules and known.path == path:
                return known
        if len(self._paths) >= _MAX_PATHS:
            del self._paths[0]
        members = members_text(_changes(self, rules, path, "" if self.scope is None else self.scope.salt))
        found = _PathFields(rules, path, members, takes_cache_salt(rules, path))
        self._paths.append(found)
        return found


NO_TENANT: Final = TenantPolicy(Tenant("", cache_sharing=CacheSharing.CLUSTER), None)
"""The policy of a gateway that asks for no API key."""


class TenantPolicies:
    """The policies of all tenants, by name; each is replaced when its tenant is.

    secret: the installation's.
    sizes: of parts that are not text, as learned; None: nothing is learned.
    """

    def __init__(self, secret: bytes, sizes: PromptSizes | None = None) -> None:
        self._secret = secret
        self._chain_starts = ChainStarts(secret)
        self._policies: dict[str, TenantPolicy] = {}
        self._sizes = PromptSizes() if sizes is None else sizes

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
        """Isolates the request as its tenant demands, and returns what routing needs of it.

        Raises ExternalRefused if it would leave the cluster. Every request passes here, with the
        model of each of its fallbacks.
        """
        head = http_request.head
        if http_request.caller is None:
            return self._routed(ANONYMOUS, request, build_route_request(request, head, request_id, self._chain_starts))
        policy = self.of(http_request.caller)
        if policy.refuses_external and request.model.leaves_cluster:
            raise _refusal(request)
        _set_fields(request, policy, head.path)
        routed = build_route_request(request, head, request_id, self._chain_starts, policy.scope)
        return self._routed(http_request.caller.name, request, routed)

    def build_copy_request(self, request: ModelRequest, http_request: HttpRequest, request_id: str) -> RouteRequest:
        """Like `build_route_request`, for a copy: in its tenant's scope, and behind all tiers."""
        own = self.of(http_request.caller)
        policy = TenantPolicy(own.tenant, own.scope)
        policy.tier = engine_priority.COPY_TIER
        _set_fields(request, policy, http_request.head.path)
        head = http_request.head
        routed = build_route_request(request, head, request_id, self._chain_starts, own.scope)
        return self._routed(caller_key(http_request.caller), request, routed)

    def _routed(self, caller: CallerKey, request: ModelRequest, routed: RouteRequest) -> RouteRequest:
        """Returns the request with its caller, and with the sizes of its parts, as learned from
        it.
        """
        routed.caller = caller
        if routed.media:
            self._sizes.measure_media(caller, request.model_key, routed)
        return routed


def _refusal(request: ModelRequest) -> ExternalRefused:
    """Returns the error of a request that would leave the cluster, and notes that on its route."""
    error, route = ExternalRefused(request.model_key), request.route
    if route is not None:
        route.withheld = (*route.withheld, request.model_key)
        error.route = route
    return error


def _set_fields(request: ModelRequest, policy: TenantPolicy, path: str) -> None:
    """Sets salt and priority of the tenant in a request, and removes the client's own priority."""
    rules, scope = request.entry.rules, policy.scope
    if request.decoded_fields is None and request.body:  # a scanned chat, which has neither field
        if scope is not None:
            request.cache_salt = scope.salt
        members = policy.members(rules, path)
        if members:
            request.body = prepend_text(request.body, members)
        return
    salt = "" if scope is None else apply_scope(request, scope)
    if not request.body:
        return
    changes = _changes(policy, rules, path, salt)
    if engine_priority.FIELD in rules.allowed_fields and engine_priority.FIELD not in changes:
        request.body = remove_fields(request.body, _PRIORITY)
    if not changes:
        return
    # A body without these signs has neither field, however it is spelled.
    if contains_any(request.body, _FIELD_SIGNS):
        request.body = set_members(request.body, changes)
    else:
        request.body = prepend_text(request.body, members_text(changes))


def _changes(policy: TenantPolicy, rules: RequestPolicy, path: str, salt: str) -> dict[str, bytes]:
    """Returns the fields that the tenant sets in a body, as JSON texts.

    salt: empty if the tenant shares the cache with the whole cluster.
    """
    changes: dict[str, bytes] = {}
    if salt and takes_cache_salt(rules, path):
        changes[cache_salt.FIELD] = b'"%b"' % salt.encode()
    priority = engine_priority.engine_priority(policy.tier, rules, path)
    if priority is not None:
        changes[engine_priority.FIELD] = priority
    return changes

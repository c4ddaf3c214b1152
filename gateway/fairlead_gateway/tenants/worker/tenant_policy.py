"""A tenant as requests read it: what its table says, in the terms of a worker.

Why: the module of `Tenant` is not compiled, and each attribute that is read there costs 140
instructions. A policy is computed once per tenant and version of the table.

The field `priority` of a request: engines that start requests by it get the tenant's tier.

vLLM starts the smallest number first, SGLang the largest. A client's own priority never reaches an
engine, since any client could go before all others with it.

Cache salts: an engine shares cached blocks only between requests with the same salt.

The salt of a scope (a tenant, or a group of tenants) is an HMAC of its name under the
installation's secret. So it is equal on all gateways and after a restart, and clients cannot
compute that of another scope. It takes the place of a client's own `cache_salt`; that one is mixed
in, and divides the cache of the scope further.

The same salt is part of the prefix hash (`openai.prefix_key`) and of the session's hash. So scopes
also differ in routing, in the hints of other gateways and in the links to the KV-cache index.

Engines without this field share their cache between all clients (`takes_cache_salt`). A gateway
warns of them (`fairlead_gateway.tenants.cache_isolation`).

Removes from responses what shows where a prompt was cached, and how busy engines are.

A tenant that shares its cache with others could read from these numbers which prompts they sent.
Numbers of cached tokens become null; null is not zero, and says that they are not known. Headers
with the instance, the reason and the times are left out. How long a response takes stays visible.

Inside a JSON string quotes are escaped, so the bytes that are replaced are always a field. Every
other byte stays, and nothing is parsed.

A request of a tenant is resolved in this fleet. So a model that it may not use is unknown to it in
every respect: by its name, in hints about similar names, in the list of models, and where two
models have the same bare name. Of a model that it may not use, it may be allowed adapters.
"""

import hmac
import re
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Final, Protocol

from fairlead.engines.facts import PriorityOrder, kinds_with
from fairlead.errors import SettingsError
from fairlead.fleet.model import Fleet, Model, RequestPolicy
from fairlead.routes.fallback_graph import can_reach
from fairlead.routes.model import Route, visible_route
from fairlead.tenants.model import CacheSharing, Enforcement, Tenant, Tier
from fairlead_gateway.admission.request_queue import TIER_WEIGHTS, CallerClass
from fairlead_gateway.caller_key import ANONYMOUS, Caller, CallerKey, caller_key
from fairlead_gateway.errors import ExternalRefused
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.openai.field_policy import known_fields, remove_fields
from fairlead_gateway.openai.json_edit import contains_any, members_text, prepend_text, set_members
from fairlead_gateway.openai.model_names import HiddenKeys, ModelEntry, client_names
from fairlead_gateway.openai.request import CacheScope, build_route_request
from fairlead_gateway.openai.response_ids import ResponseIds
from fairlead_gateway.routes.target_choice import RouteTable
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.routing.load.prompt_sizes import PromptSizes
from fairlead_gateway.routing.prefix.prefix_hash import ChainStarts
from fairlead_gateway.tenants.cache_isolation import SALT_FIELD, SALTED_ENGINES

_MAX_FLEETS: Final = 1_024

PRIORITY_FIELD: Final = "priority"
_LOWEST_TIER: Final = 2
COPY_TIER: Final = _LOWEST_TIER + 1
"""The tier of copies for a route's shadow, behind those of tenants."""
_SMALLEST_FIRST: Final = kinds_with(lambda facts: facts.priority is PriorityOrder.SMALLEST_FIRST)
_LARGEST_FIRST: Final = kinds_with(lambda facts: facts.priority is PriorityOrder.LARGEST_FIRST)
_SALT_CHARACTERS: Final = 32
_DIGEST: Final = "sha256"
_UNKNOWN_ENGINES: Final = frozenset({"vllm"})

_MAX_CACHED: Final = 16_384
_MAX_PATHS: Final = 16
"""The number of models and paths that one tenant uses at the same time."""
_PRIORITY: Final = frozenset({PRIORITY_FIELD})
_FIELD_SIGNS: Final = (SALT_FIELD.encode(), b'"priority"', b"\\u")
_TIER_NUMBERS: Final = {Tier.INTERACTIVE: 0, Tier.STANDARD: 1, Tier.BATCH: 2}

_COUNT: Final = re.compile(
    rb'("(?:prompt_cached_tokens|num_cached_tokens|cached_tokens|cache_read_input_tokens|cache_creation_input_tokens'
    rb'|prompt_cache_hit_tokens|prompt_cache_miss_tokens|tokens_cached|cache_n|prompt_n)"'
    rb"[ \t]{0,4}:[ \t]{0,4})[0-9]{1,20}"
)
"""The last three are llama.cpp's: of `timings`, what was cached and what was computed."""
_DETAILS: Final = re.compile(rb'("(?:cached_tokens_details|prompt_progress)"[ \t]{0,4}:[ \t]{0,4})\{[^{}]{0,256}\}')
_USAGE: Final = re.compile(rb"\{[^{}]{0,300}\}")
_PROMPT_PART: Final = re.compile(
    rb'"(?:input_tokens|cache_read_input_tokens|cache_creation_input_tokens)"[ \t]{0,4}:[ \t]{0,4}([0-9]{1,15})'
)
_UNCACHED: Final = re.compile(rb'("input_tokens"[ \t]{0,4}:[ \t]{0,4})[0-9]{1,15}')
_LONGEST: Final = 320
"""No field that is replaced is longer, in bytes."""
_HIDDEN: Final = rb"\1null"
_HIDDEN_HEADERS: Final = (b"endpoint-load-metrics", b"openai-processing-ms")


def route_table(fleet: Fleet) -> RouteTable | None:
    """Returns the routes of a fleet by the names for clients; None without any."""
    if not fleet.routes:
        return None
    # A model that clients may name goes before a route of the same name.
    model_keys = frozenset([key for key, model in fleet.models.items() if not model.adapters_only])
    return RouteTable(fleet.routes.values(), model_keys)


class VisibleModels:
    """Models that requests may name.

    fleet: with these models only.
    names: its `client_names`.
    routes: its routes; None without any.
    """

    __slots__ = ("_outside", "fleet", "names", "routes")

    def __init__(self, fleet: Fleet) -> None:
        self.fleet: Final[Fleet] = fleet
        self.names: Final[dict[str, ModelEntry]] = client_names(fleet)
        self.routes: Final[RouteTable | None] = route_table(fleet)
        self._outside: HiddenKeys | None = None

    def outside_cluster(self) -> HiddenKeys:
        """Returns the models that run outside the cluster, and the routes that lead there alone."""
        if self._outside is None:
            fleet = self.fleet
            models = frozenset([key for key, model in fleet.models.items() if model.leaves_cluster])
            routes = [
                key
                for key, route in fleet.routes.items()
                if models and route.models() and not can_reach(route, lambda model: model not in models)
            ]
            self._outside = HiddenKeys(models, frozenset(routes))
        return self._outside


class ModelVisibility:
    """The models that each tenant may use. Tenants with the same models share one view."""

    def __init__(self) -> None:
        self._every = VisibleModels(Fleet())
        self._views: dict[frozenset[str], VisibleModels] = {}

    def update_fleet(self, fleet: Fleet) -> None:
        self._every = VisibleModels(fleet)
        self._views = {}

    def of(self, caller: Caller | None) -> VisibleModels:
        """Returns the models that a caller may use."""
        if caller is None or caller.models is None:
            return self._every
        view = self._views.get(caller.models)
        if view is None:
            if len(self._views) >= _MAX_FLEETS:
                self._views.clear()
            fleet = self._every.fleet
            may_use = caller.tenant.may_use
            visible = {key: visible_route(route, may_use) for key, route in fleet.routes.items()}
            routes = {key: route for key, route in visible.items() if route is not None}
            models = {key: model for key, model in fleet.models.items() if may_use(key)}
            models.update(_adapter_models(fleet.models, models, caller.models))
            models = _with_bare_names(models, routes.values())
            instances = {key: found for key, found in fleet.instances.items() if key in models}
            view = VisibleModels(replace(fleet, models=models, instances=instances, routes=routes))
            self._views[caller.models] = view
        return view


def _adapter_models(models: Mapping[str, Model], usable: Container[str], allowed: Collection[str]) -> dict[str, Model]:
    """Returns the models of which a tenant may use some adapters, and not the model itself.

    usable: the models that it may use.
    allowed: what its document lists.
    """
    found = {}
    for key, model in models.items():
        if model.adapters and key not in usable:
            adapters = tuple([adapter for adapter in model.adapters if f"{model.namespace}/{adapter.name}" in allowed])
            if adapters:
                found[key] = replace(model, adapters=adapters, adapters_only=True)
    return found


def _with_bare_names(models: Mapping[str, Model], routes: Iterable[Route]) -> dict[str, Model]:
    """Returns models and adapters, each with its bare name unless another or a route has it.

    Why: in a cluster, the oldest model of a name owns it. Else a tenant could tell by its own model
    that others have one of that name.
    """
    named = [model for model in models.values() if not model.adapters_only]
    names = Counter(model.name for model in named)
    names.update(name for model in named for name in model.served_names)
    names.update(name for route in routes for name in route.names)
    adapters = [adapter for model in models.values() for adapter in model.adapters]
    names.update(name for adapter in adapters for name in {adapter.name, *adapter.bare_names})
    return {
        key: _with_adapter_names(
            replace(model, shadowed=False) if model.shadowed and names[model.name] == 1 else model, names
        )
        for key, model in models.items()
    }


def _with_adapter_names(model: Model, names: Mapping[str, int]) -> Model:
    """Returns a model whose adapters have their bare names, too, if nothing else has them."""
    hidden = [
        adapter for adapter in model.adapters if adapter.name not in adapter.bare_names and names[adapter.name] == 1
    ]
    if not hidden:
        return model
    shown = {adapter.name: replace(adapter, client_names=(adapter.name, *adapter.bare_names)) for adapter in hidden}
    return replace(model, adapters=tuple(shown.get(adapter.name, adapter) for adapter in model.adapters))


def scope_of(tenant: Tenant, secret: bytes) -> CacheScope | None:
    """Returns the scope of a tenant; None if it shares the cache with the whole cluster."""
    if tenant.cache_sharing is CacheSharing.CLUSTER:
        return None
    if tenant.cache_sharing is CacheSharing.GROUP and tenant.cache_group is not None:
        return CacheScope(_keyed_salt(secret, f"group\0{tenant.cache_group}"))
    return CacheScope(_keyed_salt(secret, f"tenant\0{tenant.name}"))


def apply_scope(request: ModelRequest, scope: CacheScope) -> str:
    """Sets the salt of the request's prefix hash, and returns this salt.

    It is the salt of the scope, or the client's own, keyed with that of the scope.
    """
    fields = request.decoded_fields  # None: a scanned chat, which has no salt
    client_salt = None if fields is None else fields.cache_salt
    salt = _keyed_salt(scope.salt.encode(), client_salt) if client_salt else scope.salt
    request.cache_salt = salt
    return salt


def takes_cache_salt(policy: RequestPolicy, path: str) -> bool:
    """Returns whether all engines of a model have the field `cache_salt` on a path.

    Of an engine that is not vLLM, SGLang or the simulator that is not known. It gets a salt if
    `engine.allowedFields` of its model names the field.
    """
    return SALT_FIELD in policy.allowed_fields or _all_take_salt(policy.engines or _UNKNOWN_ENGINES, path)


@lru_cache(maxsize=256)
def _all_take_salt(engines: frozenset[str], path: str) -> bool:
    return engines <= SALTED_ENGINES and all(SALT_FIELD in (known_fields(engine, path) or ()) for engine in engines)


def _keyed_salt(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), _DIGEST).hex()[:_SALT_CHARACTERS]


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


def parse_changing_text(text: str | None) -> re.Pattern[bytes] | None:
    """Returns the pattern of a setting; None without one. Raises SettingsError."""
    if not text:
        return None
    try:
        return re.compile(text.encode())
    except re.error as error:
        raise SettingsError(f"FAIRLEAD_CHANGING_TEXT: this is no regular expression: {error}") from None


class TenantPolicies:
    """The policies of all tenants, by name; each is replaced when its tenant is.

    secret: the installation's.
    response_ids: of stored responses, which belong to one tenant each.
    sizes: of parts that are not text, as learned; None: nothing is learned.
    """

    def __init__(self, secret: bytes, sizes: PromptSizes | None = None) -> None:
        self._secret = secret
        self.response_ids = ResponseIds(secret)
        self._chain_starts = ChainStarts(secret)
        self._policies: dict[str, TenantPolicy] = {}
        self._sizes = PromptSizes() if sizes is None else sizes

    def leave_out(self, changing_text: str | None) -> None:
        """Leaves text that changes with every request out of prompts' keys.

        changing_text: a regular expression; None: nothing is left out. Raises SettingsError.
        """
        self._chain_starts.changing_text = parse_changing_text(changing_text)

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
        routed = build_route_request(
            request, head, request_id, self._chain_starts, policy.scope, http_request.caller.name
        )
        return self._routed(http_request.caller.name, request, routed)

    def build_copy_request(self, request: ModelRequest, http_request: HttpRequest, request_id: str) -> RouteRequest:
        """Like `build_route_request`, for a copy: in its tenant's scope, and behind all tiers."""
        own = self.of(http_request.caller)
        policy = TenantPolicy(own.tenant, own.scope)
        policy.tier = COPY_TIER
        _set_fields(request, policy, http_request.head.path)
        head = http_request.head
        caller = caller_key(http_request.caller)
        routed = build_route_request(request, head, request_id, self._chain_starts, own.scope, caller)
        return self._routed(caller, request, routed)

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
    if PRIORITY_FIELD in rules.allowed_fields and PRIORITY_FIELD not in changes:
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
        changes[SALT_FIELD] = b'"%b"' % salt.encode()
    priority = engine_priority(policy.tier, rules, path)
    if priority is not None:
        changes[PRIORITY_FIELD] = priority
    return changes


def engine_priority(tier: int, policy: RequestPolicy, path: str) -> bytes | None:
    """Returns the priority of a tier as JSON; None if the engines of the model take none there."""
    return _priority(tier, policy.engines, path) if policy.sets_priority else None


@lru_cache(maxsize=256)
def _priority(tier: int, engines: frozenset[str], path: str) -> bytes | None:
    if not engines or any(PRIORITY_FIELD not in (known_fields(engine, path) or ()) for engine in engines):
        return None
    if engines <= _SMALLEST_FIRST:
        return b"%d" % tier
    return b"%d" % (_LOWEST_TIER - tier) if engines <= _LARGEST_FIRST else None


class BodyRewriter(Protocol):
    """Another rewriter of the same response."""

    def rewrite(self, data: bytes) -> bytes: ...

    def rewrite_events(self, events: list[bytes]) -> list[bytes]: ...

    def rewrite_chunks(self, chunks: list[bytes], last: bool) -> list[bytes]: ...


def hide_cached_tokens(data: bytes) -> bytes:
    """Returns a body or an event without numbers of cached tokens."""
    if data.find(b"cache") < 0 and data.find(b'"prompt_n"') < 0:
        return data
    if data.find(b'"cache_read_input_tokens"') >= 0:
        data = _USAGE.sub(_with_whole_prompt, data)
    return _DETAILS.sub(_HIDDEN, _COUNT.sub(_HIDDEN, data))


def _with_whole_prompt(usage: re.Match[bytes]) -> bytes:
    """Returns the counts of a message with all tokens of its prompt as `input_tokens`.

    Why: these leave out the cached ones, so they would show how many were cached.
    """
    tokens = sum(map(int, _PROMPT_PART.findall(usage[0])))
    return _UNCACHED.sub(rb"\g<1>%d" % tokens, usage[0])


def shown_headers(fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: value for name, value in fields.items() if name not in _HIDDEN_HEADERS}


class CachedTokensFilter:
    """The rewriter that hides cached tokens in one response, after another rewriter."""

    def __init__(self, before: BodyRewriter | None = None) -> None:
        self._before = before
        self._pending = b""

    def rewrite(self, data: bytes) -> bytes:
        return hide_cached_tokens(data if self._before is None else self._before.rewrite(data))

    def rewrite_events(self, events: list[bytes]) -> list[bytes]:
        events = events if self._before is None else self._before.rewrite_events(events)
        return [hide_cached_tokens(event) for event in events]

    def rewrite_chunks(self, chunks: list[bytes], last: bool) -> list[bytes]:
        """Returns chunks, as the network cut them, without them.

        What may be the start of a field waits for the next chunk. A line that is complete does not.

        last: no chunk follows.
        """
        chunks = chunks if self._before is None else self._before.rewrite_chunks(chunks, last)
        data = self._pending + b"".join(chunks)
        end = len(data) if last or data.endswith(b"\n") else _complete_end(data)
        self._pending = data[end:]
        complete = hide_cached_tokens(data[:end])
        return [complete] if complete else []


def _complete_end(data: bytes) -> int:
    """Returns the end of the part in which no field is cut."""
    end = max(0, len(data) - _LONGEST)
    for pattern in (_COUNT, _DETAILS, _USAGE):
        for match in pattern.finditer(data, max(0, end - _LONGEST)):
            if match.start() < end < match.end():
                end = match.start()
    return end

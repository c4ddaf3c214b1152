"""Parses a request, finds its model, and isolates it as its tenant demands."""

from functools import partial
from typing import Final

from fairlead.engines.facts import kinds_with
from fairlead.fleet.model import EXTERNAL_API, Fleet
from fairlead.limits import Limits
from fairlead_gateway.body_check.worker.client import BodyChecker
from fairlead_gateway.caller_key import caller_key
from fairlead_gateway.dialects.passed_on import STORED_RESPONSE, GenericRequest
from fairlead_gateway.dialects.responses import RESPONSES, ResponsesRequest
from fairlead_gateway.dialects.schemas import MEMBERS_DECODER
from fairlead_gateway.dialects.table import BODY_TYPES, dialect_of
from fairlead_gateway.errors import BadRequest, FieldRefused, GatewayError, MethodNotAllowed, UnknownResponse
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.openai.body_parser import ModelRequest, ScanBounds, parse_body, parsed_body
from fairlead_gateway.openai.field_policy import check_background
from fairlead_gateway.openai.json_edit import prepend_text, set_members
from fairlead_gateway.openai.model_names import ModelEntry, resolve_model_entry
from fairlead_gateway.openai.request import (
    BodyParser,
    add_query,
    bind_by_name,
    bind_passthrough,
    bind_to_entry,
    can_resume,
    parse_passthrough,
    parse_passthrough_request,
)
from fairlead_gateway.openai.validation import repairs
from fairlead_gateway.proxy.fallbacks import FallbackRequest
from fairlead_gateway.proxy.route_choice import apply_rewrite, choose_entry, fallback_entry, takes_canary
from fairlead_gateway.routes.target_choice import RouteDecision, RouteTable
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.tenants.worker.tenant_policy import TenantPolicies, VisibleModels

_BODY_TYPES: Final = BODY_TYPES
_RESPONSES: Final = RESPONSES
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
"""Some clients write it, such as PowerShell. Engines in Python skip it, others do not."""
_INVALID_TYPE: Final = "invalid_type"
_RESPONSES_ROOT: Final = f"{RESPONSES.paths[0]}/"
_MODEL_QUERY: Final = b"model="
"""Names the model of a path that `engine.allowedPaths` opens."""
_WITHOUT_BACKGROUND: Final = kinds_with(lambda facts: facts.ignores_background)
_STORE_KEY: Final = b'"store"'
_STORE_WORDS: Final = (_STORE_KEY, b"\\u00")
"""The key, and the start of an escape that may be a part of it."""
_NO_STORE: Final = _STORE_KEY + b":false"
_STORED_HINT: Final = "use GET or DELETE, or POST with /cancel"


class ModelRequestParser:
    """The parser of requests for models."""

    def __init__(self, limits: Limits, policies: TenantPolicies, body_checker: BodyChecker) -> None:
        self._limits = limits
        self._policies = policies
        self._body_checker = body_checker
        self._scan_bounds = ScanBounds(limits)
        self._response_ids = policies.response_ids

    def parse(
        self, http_request: HttpRequest, models: VisibleModels, request_id: str, fallback: FallbackRequest | None = None
    ) -> tuple[ModelRequest, RouteRequest]:
        """Returns a request as engines get it, and as routing sees it. Raises GatewayError.

        models: that the client may use.
        fallback: gives the request another model than the one before.
        """
        try:
            return self._parse(http_request, models, request_id, fallback)
        except BadRequest as error:
            body = http_request.body.removeprefix(_BYTE_ORDER_MARK)
            if error.code == _INVALID_TYPE:
                changes = repairs(_BODY_TYPES.get(http_request.head.path, GenericRequest), body)
                body = set_members(body, changes) if changes else body
            if body is http_request.body:
                raise
        http_request.body = body
        return self._parse(http_request, models, request_id, fallback)

    def _parse(
        self, http_request: HttpRequest, models: VisibleModels, request_id: str, fallback: FallbackRequest | None
    ) -> tuple[ModelRequest, RouteRequest]:
        head, body, limits = http_request.head, http_request.body, self._limits
        if head.path not in _BODY_TYPES and dialect_of(head.path) is STORED_RESPONSE:
            request = self._parse_stored(http_request, models)
        elif fallback is not None:
            request = self._parse_fallback(http_request, fallback, models.fleet, partial(parse_body, limits=limits))
        elif models.routes is not None:
            request = self._parse_routed(http_request, models, models.routes)
        else:
            body_type = _BODY_TYPES.get(head.path)
            if body_type is None:
                request = parse_passthrough_request(head, body, models.fleet, limits, models.names)
            else:
                request = parse_body(body_type, body, limits, self._scan_bounds)
                bind_by_name(head.path, request, models.fleet, limits, models.names)
        return request, self._build_route_request(request, http_request, request_id, models.fleet)

    def parse_large(
        self, http_request: HttpRequest, models: VisibleModels, request_id: str, fallback: FallbackRequest | None = None
    ) -> tuple[ModelRequest, RouteRequest]:
        """Like `parse`, for a thread: the body is checked in a process, and edited in slices."""
        http_request.body = http_request.body.removeprefix(_BYTE_ORDER_MARK)
        try:
            return self._parse_large(http_request, models, request_id, fallback)
        except BadRequest as error:
            if not error.repairs:
                raise
            body = set_members(http_request.body, error.repairs)
        http_request.body = body
        return self._parse_large(http_request, models, request_id, fallback)

    def _parse_large(
        self, http_request: HttpRequest, models: VisibleModels, request_id: str, fallback: FallbackRequest | None
    ) -> tuple[ModelRequest, RouteRequest]:
        head, body = http_request.head, http_request.body
        fleet, names, routes = models.fleet, models.names, models.routes
        is_strict = self._policies.of(http_request.caller).is_strict
        check = partial(self._body_checker.parse_body, wants_bounds=is_strict)
        if fallback is not None:
            request = self._parse_fallback(http_request, fallback, fleet, check)
        elif head.path in _BODY_TYPES:
            request = check(_BODY_TYPES[head.path], body)
            chosen = None if routes is None else choose_entry(routes, http_request, request, fleet, names)
            self._bind(head.path, request, chosen, models)
        else:
            request = self._parse_passthrough(http_request, models, check)
        request.resumable = can_resume(request)  # it searches the whole body
        return request, self._build_route_request(request, http_request, request_id, fleet)

    def parse_copy(
        self, http_request: HttpRequest, decision: RouteDecision, entry: ModelEntry, request_id: str
    ) -> tuple[ModelRequest, RouteRequest]:
        """Returns the copy of a request for the shadow of its route. Raises GatewayError.

        http_request: for a path of a dialect that is routed by its prompt.
        """
        path, body = http_request.head.path, http_request.body
        request = parse_body(_BODY_TYPES[path], body, self._limits, self._scan_bounds)
        bind_to_entry(path, request, entry, self._limits)
        if decision.rewrite is not None:
            apply_rewrite(request, decision)
        if request.dialect is RESPONSES:  # a copy leaves nothing behind
            changes = {"store": b"false"}
            if isinstance(request.decoded_fields, ResponsesRequest) and request.decoded_fields.background:
                changes["background"] = b"false"
            request.body = set_members(request.body, changes)
        routed = self._policies.build_copy_request(request, http_request, request_id)
        return request, _with_canary(request, routed)

    def _parse_stored(self, http_request: HttpRequest, models: VisibleModels) -> ModelRequest:
        """Returns a request for a stored response, which goes to the instance that holds it.

        Raises UnknownResponse if no instance does, or if another tenant made it.
        """
        head, fleet = http_request.head, models.fleet
        before, _, rest = head.path.removeprefix(_RESPONSES_ROOT).partition("/")
        try:
            held = self._response_ids.find(before, caller_key(http_request.caller), fleet)
        except UnknownResponse:
            if _MODEL_QUERY not in head.query:
                raise
            return parse_passthrough_request(head, http_request.body, fleet, self._limits, models.names)
        if (head.method == "POST") != (rest == "cancel"):
            raise MethodNotAllowed("this path does not support this method", hint=_STORED_HINT)
        request = parsed_body(GenericRequest(model=held.model_key), b"")
        request.dialect, request.held, request.method = STORED_RESPONSE, held, head.method
        request.bind(ModelEntry(held.model_key, fleet.models[held.model_key]), b"")
        query = f"?{head.query.decode('latin-1')}" if head.query else ""
        request.target = f"{_RESPONSES_ROOT}{held.engine_id}{'/' + rest if rest else ''}{query}"
        return request

    def _find_previous(self, request: ModelRequest, http_request: HttpRequest, fleet: Fleet) -> None:
        """Binds a request that continues a stored response to the instance that holds it.

        Raises BadRequest for a background that no engine of the model has, or that the model does
        not allow.
        """
        fields, rules = request.decoded_fields, request.model.requests
        if EXTERNAL_API not in rules.engines:
            request.runs_on = isinstance(fields, ResponsesRequest) and bool(fields.background)
            if request.runs_on and rules.engines & _WITHOUT_BACKGROUND:
                raise BadRequest("background: engines of this model have no background mode", param="background")
            _leave_nothing_behind(request, rules.allowed_fields)
        if not isinstance(fields, ResponsesRequest):  # a scanned one continues no other
            return
        previous = fields.previous_response_id
        if not previous:
            return
        held = self._response_ids.find(previous, caller_key(http_request.caller), fleet)
        if held.model_key != request.model_key:
            raise UnknownResponse(previous)
        request.held = held
        request.body = set_members(request.body, {"previous_response_id": b'"%b"' % held.engine_id.encode()})

    def _build_route_request(
        self, request: ModelRequest, http_request: HttpRequest, request_id: str, fleet: Fleet
    ) -> RouteRequest:
        if http_request.head.query and request.target is None:
            add_query(http_request.head, request)
        if request.dialect is _RESPONSES:
            self._find_previous(request, http_request, fleet)
        routed = self._policies.build_route_request(request, http_request, request_id)
        return _with_canary(request, routed)

    def _parse_fallback(
        self, http_request: HttpRequest, fallback: FallbackRequest, fleet: Fleet, parse: BodyParser
    ) -> ModelRequest:
        """Returns the request for the model of a fallback."""
        head, body, decision = http_request.head, http_request.body, fallback.decision
        try:
            entry = fallback_entry(decision, fleet)
            if head.path in _BODY_TYPES:
                request = parse(_BODY_TYPES[head.path], body)
                bind_to_entry(head.path, request, entry, self._limits)
            else:
                request = parse_passthrough(head, body, parse)
                bind_passthrough(head, request, entry)
        except GatewayError as error:
            error.route = decision
            raise
        _set_route(request, decision)
        return request

    def _parse_routed(self, http_request: HttpRequest, models: VisibleModels, routes: RouteTable) -> ModelRequest:
        """Like `parse`, where clients may name routes."""
        path, body, limits = http_request.head.path, http_request.body, self._limits
        if path not in _BODY_TYPES:
            return self._parse_passthrough(http_request, models, partial(parse_body, limits=limits))
        request = parse_body(_BODY_TYPES[path], body, limits, self._scan_bounds)
        self._bind(path, request, choose_entry(routes, http_request, request, models.fleet, models.names), models)
        return request

    def _bind(
        self, path: str, request: ModelRequest, chosen: tuple[ModelEntry, RouteDecision] | None, models: VisibleModels
    ) -> None:
        """Binds a request to the model behind a route; without one, to the model that it names."""
        if chosen is None:
            bind_by_name(path, request, models.fleet, self._limits, models.names)
            return
        bind_to_entry(path, request, chosen[0], self._limits)
        _set_route(request, chosen[1])

    def _parse_passthrough(self, http_request: HttpRequest, models: VisibleModels, parse: BodyParser) -> ModelRequest:
        """Returns a request for a path that the gateway does not know."""
        head, routes = http_request.head, models.routes
        request = parse_passthrough(head, http_request.body, parse)
        chosen = None if routes is None else choose_entry(routes, http_request, request, models.fleet, models.names)
        if chosen is None:
            bind_passthrough(head, request, resolve_model_entry(request.model_name, models.fleet, models.names))
            return request
        bind_passthrough(head, request, chosen[0])
        _set_route(request, chosen[1])
        return request


def _leave_nothing_behind(request: ModelRequest, allowed: frozenset[str]) -> None:
    """Has the engine store no answer, unless the model allows it. Engines store by default.

    Raises FieldRefused for a request that would run on after its answer, unless the model allows
    it.

    Why: nothing that an engine keeps counts in a limit, and SGLang never drops an answer.
    """
    if request.runs_on:
        try:
            check_background(allowed)
        except FieldRefused as refusal:
            refusal.key = request.model_key
            raise
    if request.runs_on or "store" in allowed:
        return
    body = request.body
    searched = request.around_prompt() if body is request.client_body else body
    if all(searched.find(word) < 0 for word in _STORE_WORDS):
        request.body, request.is_unstored = prepend_text(body, _NO_STORE), True
    elif bytes(MEMBERS_DECODER.decode(body).get("store", b"")) != b"false":
        request.body, request.is_unstored = set_members(body, {"store": b"false"}), True


def _with_canary(request: ModelRequest, routed: RouteRequest) -> RouteRequest:
    weight = request.entry.canary_weight
    if weight:
        routed.takes_canary = takes_canary(request, routed, weight)
    return routed


def _set_route(request: ModelRequest, decision: RouteDecision) -> None:
    """Sets the route that chose the model of a request, and the parameters that it sets."""
    request.route = decision
    if decision.rewrite is not None:
        apply_rewrite(request, decision)

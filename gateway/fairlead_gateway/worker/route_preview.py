"""Previews the route of a request: where it would go now, and why.

The management port requests it. Nothing is sent, counted or remembered, so a preview changes no
later route. Admission is left out: where requests queue, this one would too, and
its route would depend on what is known when it leaves the queue. So are limits. Between equal
instances the request's id decides, so another request with this prompt may go elsewhere.
"""

import asyncio
from typing import Final

from fairlead_gateway.caller_key import Caller
from fairlead_gateway.errors import BadRequest, Overloaded, UnknownPath
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.ipc.messages import WORKER_QUERY_SECONDS, PreviewRoute
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.routing.prefill_placement import LOCAL_RULES
from fairlead_gateway.routing.request import NO_INSTANCES
from fairlead_gateway.telemetry.decision_log import DecisionRecord, LoggedRequest
from fairlead_gateway.telemetry.handoff_record import BYPASSED, HandoffRecord
from fairlead_gateway.worker.disaggregation import kv_connectors
from fairlead_gateway.worker.openai.request import BODY_TYPES, ModelRequest
from fairlead_gateway.worker.proxy.gateway import Gateway
from fairlead_gateway.worker.request_context import AdapterUse

_PREVIEW_ID: Final = "asked"
_PARSE_SHARE: Final = 0.5
"""The part of a query's time that its body may take; others may be checked before it."""


class RoutePreviewer:
    """The previewer of routes: it decides where a request would go, without sending it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._clock = gateway.runtime.clock
        self._routers = gateway.stack.routers
        self._prefill_coordinator = gateway.stack.prefill_coordinator

    async def preview(self, query: PreviewRoute) -> LoggedRequest:
        """Returns the choices that a request would get: the prefill instance, if any, then
        the instance that answers.

        Raises GatewayError as for a request of a client, and for an unknown tenant. Raises
        Overloaded if the body is not checked before the supervisor takes the worker for hung.
        """
        routers, prefilling = self._routers.serving, self._routers.prefilling
        http_request = self._http_request(query)
        request, route_request = await self._parse(http_request)
        key = request.model_key
        now = self._clock.now()
        excluded, loader = NO_INSTANCES, self._gateway.stack.adapter_loader
        use: AdapterUse | None = None
        if request.adapter is not None:
            use = loader.place(key, request.adapter, NO_INSTANCES)
            excluded = loader.restrict(key, use)
        decision = routers.choose(key, route_request, now, excluded, preview=True)
        if use is not None:
            decision = decision.after(use.describe)
        choices = [(routers, decision)]
        record = None
        if prefilling.has_instances(key) and decision.chosen is not None:
            record = HandoffRecord()
            ineligible = kv_connectors.ineligible_reason(request.fields, request.body)
            if ineligible is None:
                placement = record.placement = self._prefill_coordinator.place_prefill(
                    request, route_request, decision.chosen, now
                )
                record.reason, record.message = placement.rule, placement.reason
            else:
                record.reason, record.message = ineligible
            if record.placement is None or record.placement.rule in LOCAL_RULES:
                record.outcome = BYPASSED
            elif record.placement.chosen is not None:
                prefill = prefilling.choose(key, route_request, now, NO_INSTANCES, preview=True)
                choices.insert(0, (prefilling, prefill.with_text(reason=f"to prefill it: {prefill.reason}")))
        wall = self._clock.wall()
        records = [
            DecisionRecord(_PREVIEW_ID, wall, key, choice, 1, role.prompt_tokens(key, route_request), None, record)
            for role, choice in choices
        ]
        for found in records:
            found.route = request.route
        return LoggedRequest(records)

    async def _parse(self, http_request: HttpRequest) -> tuple[ModelRequest, RouteRequest]:
        seconds = _PARSE_SHARE * WORKER_QUERY_SECONDS
        try:
            return await asyncio.wait_for(self._gateway.parse(http_request, _PREVIEW_ID), seconds)
        except TimeoutError:
            raise Overloaded("the body could not be checked in time", hint="try again later") from None

    def _http_request(self, query: PreviewRoute) -> HttpRequest:
        """Returns the request as if a client had sent it with a key of the tenant."""
        path, body, session = query.path, query.body, query.session
        if path not in BODY_TYPES:
            raise UnknownPath(
                f"requests for {path} are not routed by their prompt", hint=f"use one of {', '.join(BODY_TYPES)}"
            )
        headers = query.headers if session is None else [("x-session-id", session), *query.headers]
        fields = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]
        head = RequestHead("POST", path, fields, 11, len(body), keep_alive=True, expects_continue=False)
        caller = None if query.tenant is None else self._caller_of(query.tenant)
        return HttpRequest(head, body, _PREVIEW_ID, self._clock.now(), self._clock.wall(), caller)

    def _caller_of(self, tenant: str) -> Caller:
        api_keys = self._gateway.api_keys
        caller = None if api_keys is None else api_keys.caller_of(tenant)
        if caller is None:
            raise BadRequest(f"tenant: no tenant is called {tenant!r}", param="tenant")
        return caller

"""Previews the route of a request: where it would go now, and why.

The management port requests it. Nothing is sent, counted or remembered, so a preview changes no
later route. Admission is left out: where requests queue, this one would too, and
its route would depend on what is known when it leaves the queue. Between equal instances the
request's id decides, so another request with this prompt may go elsewhere.
"""

from typing import Final

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.errors import UnknownPath
from fairlead_gateway.http.request_head import RequestHead
from fairlead_gateway.routing.prefill_placement import LOCAL_RULES
from fairlead_gateway.routing.prefix.prefix_hash import ChainStarts
from fairlead_gateway.routing.request import NO_INSTANCES
from fairlead_gateway.telemetry.decision_log import DecisionRecord, LoggedRequest
from fairlead_gateway.telemetry.handoff_record import BYPASSED, HandoffRecord
from fairlead_gateway.worker.disaggregation import kv_connectors
from fairlead_gateway.worker.disaggregation.prefill_coordinator import PrefillCoordinator
from fairlead_gateway.worker.dispatch.router_registry import RouterRegistry
from fairlead_gateway.worker.openai.prefix_key import build_route_request
from fairlead_gateway.worker.openai.request import BODY_TYPES, parse_request

_PREVIEW_ID: Final = "asked"


class RoutePreviewer:
    """The previewer of routes: it decides where a request would go, without sending it."""

    def __init__(
        self, clock: Clock, limits: Limits, routers: RouterRegistry, prefill_coordinator: PrefillCoordinator
    ) -> None:
        self._clock = clock
        self._limits = limits
        self._routers = routers
        self._prefill_coordinator = prefill_coordinator

    def preview(self, path: str, body: bytes, session: str | None) -> LoggedRequest:
        """Returns the choices that a request would get: the prefill instance, if any, then
        the instance that answers.

        body: as a client would send it to `path`.
        session: as in the header x-session-id.
        Raises GatewayError as for a request of a client.
        """
        if path not in BODY_TYPES:
            raise UnknownPath(
                f"requests for {path} are not routed by their prompt", hint=f"use one of {', '.join(BODY_TYPES)}"
            )
        routers, prefilling = self._routers.serving, self._routers.prefilling
        fields = [] if session is None else [(b"x-session-id", session.encode("latin-1", "replace"))]
        head = RequestHead("POST", path, fields, 11, len(body), keep_alive=True, expects_continue=False)
        request = parse_request(path, body, routers.fleet, self._limits)
        key = request.model_key
        route_request = build_route_request(request, head, _PREVIEW_ID, ChainStarts(routers.secret))
        now = self._clock.now()
        decision = routers.choose(key, route_request, now, NO_INSTANCES, preview=True)
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
        return LoggedRequest(
            [
                DecisionRecord(_PREVIEW_ID, wall, key, choice, 1, role.prompt_tokens(key, route_request), None, record)
                for role, choice in choices
            ]
        )

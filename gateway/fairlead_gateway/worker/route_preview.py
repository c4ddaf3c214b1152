"""Where would a request go just now, and why? Asked through the management port, and found by the rooms of a request's way.

Nothing is sent, counted or remembered, so the next request is routed as if nobody had asked. The gate before engines is left
out: where requests are held, one with this prompt would be too, and go by what is known when it is released. Between engines
that are equal the request's id decides, so another request with this prompt may go to another of them.
"""

from typing import Final

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.errors import UnknownPath
from fairlead_gateway.http.request_head import RequestHead
from fairlead_gateway.routing.prefill_placement import LOCAL_RULES
from fairlead_gateway.telemetry.decision_log import DecisionRecord, LoggedRequest
from fairlead_gateway.telemetry.handoff_record import BYPASSED, HandoffRecord
from fairlead_gateway.worker.disaggregation import kv_connectors as plan
from fairlead_gateway.worker.disaggregation.prefill_coordinator import PrefillCoordinator
from fairlead_gateway.worker.dispatch.router_registry import RouterRegistry
from fairlead_gateway.worker.openai.prefix_key import build_route_request
from fairlead_gateway.worker.openai.request import BODY_TYPES, parse_request

_PREVIEW_ID: Final = "asked"
_NO_IDS: Final[frozenset[str]] = frozenset()


def preview_route(
    path: str,
    body: bytes,
    session: str | None,
    *,
    routers: RouterRegistry,
    prefill_routers: RouterRegistry,
    prefill_coordinator: PrefillCoordinator,
    limits: Limits,
    clock: Clock,
) -> LoggedRequest:
    """The choices that a request would get: of the engine that prefills where another one than the one that answers would, then of
    that one.

    ``body`` as a client would send it to ``path``; ``session`` as in the header x-session-id. Raises GatewayError as a request would.
    """
    if path not in BODY_TYPES:
        raise UnknownPath(f"nothing is routed by its prompt under {path}", hint=f"one of {', '.join(BODY_TYPES)}")
    fields = [] if session is None else [(b"x-session-id", session.encode("latin-1", "replace"))]
    head = RequestHead("POST", path, fields, 11, len(body), keep_alive=True, expects_continue=False)
    request = parse_request(path, body, routers.fleet, limits)
    route_request = build_route_request(request, head, _PREVIEW_ID, routers.secret)
    now = clock.now()
    answers = routers.choose(request.model_key, route_request, now, _NO_IDS, preview=True)
    choices = [(routers, answers)]
    record = None
    if prefill_routers.has_instances(request.model_key) and answers.chosen is not None:
        record = HandoffRecord()
        against = plan.ineligible_reason(request.fields, request.body)
        if against is None:
            record.placement = prefill_coordinator.place_prefill(request, route_request, answers.chosen, now)
            record.reason, record.message = record.placement.rule, record.placement.reason
        else:
            record.reason, record.message = against
        if record.placement is None or record.placement.rule in LOCAL_RULES:
            record.outcome = BYPASSED
        elif record.placement.chosen is not None:
            first = prefill_routers.choose(request.model_key, route_request, now, _NO_IDS, preview=True)
            choices.insert(0, (prefill_routers, first.with_text(reason=f"to prefill it: {first.reason}")))
    return LoggedRequest(
        [
            DecisionRecord(
                _PREVIEW_ID,
                clock.wall(),
                request.model_key,
                made,
                1,
                place.prompt_tokens(request.model_key, route_request),
                None,
                record,
            )
            for place, made in choices
        ]
    )

"""Where would a request go just now, and why? Asked through the management port, and found by the rooms of a request's way.

Nothing is sent, counted or remembered, so the next request is routed as if nobody had asked. The gate before engines is left
out: where requests are held, one with this prompt would be too, and go by what is known when it is released. Between engines
that are equal the request's id decides, so another request with this prompt may go to another of them.
"""

from typing import Final

from fairlead.clock import Clock
from fairlead.limits import Limits
from fairlead_gateway.decision_log import DecisionRecord, Logged
from fairlead_gateway.errors import UnknownPath
from fairlead_gateway.head import Head
from fairlead_gateway.model import PATHS, understand
from fairlead_gateway.prompt import route_request
from fairlead_gateway.route import Routes

_ID: Final = "asked"
_NOBODY: Final[frozenset[str]] = frozenset()


def would(
    path: str, body: bytes, session: str | None, *, routes: Routes, prefilling: Routes, limits: Limits, clock: Clock
) -> Logged:
    """The choices that a request would get: of the engine that prefills where the model has such, then of the one that answers.

    ``body`` as a client would send it to ``path``; ``session`` as in the header x-session-id. Raises GatewayError as a request would.
    """
    if path not in PATHS:
        raise UnknownPath(f"nothing is routed by its prompt under {path}", hint=f"one of {', '.join(PATHS)}")
    fields = [] if session is None else [(b"x-session-id", session.encode("latin-1", "replace"))]
    head = Head("POST", path, fields, 11, len(body), keep_alive=True, continues=False)
    ask = understand(path, body, routes.fleet, limits)
    request = route_request(ask, head, _ID, routes.secret)
    now, records = clock.now(), []
    for place in (prefilling, routes):
        if place is prefilling and not place.has(ask.key):
            continue
        decision = place.choose(ask.key, request, now, _NOBODY, asking=True)
        if place is prefilling:
            decision = decision.told(reason=f"to prefill it: {decision.reason}")
        tokens = place.prompt_tokens(ask.key, request)
        records.append(DecisionRecord(_ID, clock.wall(), ask.key, decision, 1, tokens))
    return Logged(records)

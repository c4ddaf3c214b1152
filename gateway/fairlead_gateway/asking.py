"""Where would a request go just now, and why? Asked through the management port, and found by the rooms of a request's way.

Nothing is sent, counted or remembered, so the next request is routed as if nobody had asked. The gate before engines is left
out: where requests are held, one with this prompt would be too, and go by what is known when it is released. Between engines
that are equal the request's id decides, so another request with this prompt may go to another of them.
"""

from typing import Final

from fairlead.clock import Clock
from fairlead.limits import Limits
from fairlead_gateway import handoff_plan as plan
from fairlead_gateway.decision_log import DecisionRecord, Logged
from fairlead_gateway.errors import UnknownPath
from fairlead_gateway.handoff_story import BYPASSED, HandoffStory
from fairlead_gateway.head import Head
from fairlead_gateway.model import PATHS, understand
from fairlead_gateway.prefill import Prefill
from fairlead_gateway.prompt import route_request
from fairlead_gateway.route import Routes
from fairlead_gateway.routing.convertible import STAYS

_ID: Final = "asked"
_NOBODY: Final[frozenset[str]] = frozenset()


def would(
    path: str,
    body: bytes,
    session: str | None,
    *,
    routes: Routes,
    prefilling: Routes,
    prefill: Prefill,
    limits: Limits,
    clock: Clock,
) -> Logged:
    """The choices that a request would get: of the engine that prefills where another one than the one that answers would, then of
    that one.

    ``body`` as a client would send it to ``path``; ``session`` as in the header x-session-id. Raises GatewayError as a request would.
    """
    if path not in PATHS:
        raise UnknownPath(f"nothing is routed by its prompt under {path}", hint=f"one of {', '.join(PATHS)}")
    fields = [] if session is None else [(b"x-session-id", session.encode("latin-1", "replace"))]
    head = Head("POST", path, fields, 11, len(body), keep_alive=True, continues=False)
    ask = understand(path, body, routes.fleet, limits)
    request = route_request(ask, head, _ID, routes.secret)
    now = clock.now()
    answers = routes.choose(ask.key, request, now, _NOBODY, asking=True)
    choices = [(routes, answers)]
    story = None
    if prefilling.has(ask.key) and answers.chosen is not None:
        story = HandoffStory()
        against = plan.why_not(ask.parsed, ask.body)
        if against is None:
            story.where = prefill.where(ask, request, answers.chosen, now)
            story.reason, story.words = story.where.rule, story.where.reason
        else:
            story.reason, story.words = against
        if story.where is None or story.where.rule in STAYS:
            story.outcome = BYPASSED
        elif story.where.chosen is not None:
            first = prefilling.choose(ask.key, request, now, _NOBODY, asking=True)
            choices.insert(0, (prefilling, first.told(reason=f"to prefill it: {first.reason}")))
    return Logged(
        [
            DecisionRecord(_ID, clock.wall(), ask.key, made, 1, place.prompt_tokens(ask.key, request), None, story)
            for place, made in choices
        ]
    )

"""The plain presets: round-robin, least-request and session. Baselines, and what some traffic needs.

Source: every load balancer has them. Ours: ties are broken by a hash of the request's id, not by order, and a session's instance is
the first of the homes that the default would give the session's name, so that it moves as rarely as they do.
"""

from fairlead.decision import Decision
from fairlead_gateway.routing.presets.answer import chosen, fewest
from fairlead_gateway.routing.presets.question import Question


def round_robin(question: Question) -> Decision:
    """The next instance, counting around."""
    options = question.options
    turn = question.turn % len(options)
    return chosen(question, options[turn], "round-robin", f"turn {turn + 1} of {len(options)}", what="turn", scores={})


def least_request(question: Question) -> Decision:
    """The instance with the fewest of this gateway's requests in flight."""
    best = fewest(question, question.options)
    scores = {item.id: float(item.inflight) for item in question.options}
    return chosen(question, best, "least-request", f"fewest in flight: {best.inflight}", what="inflight", scores=scores)


def session(question: Question) -> Decision:
    """The first home of the session (or, without a session id, of the prompt's key), whatever its load."""
    best = question.option(question.homes[0])
    what = "the session's" if question.named else "no session id was sent; the prompt's"
    return chosen(question, best, "session", f"{what} home", what="home", scores={})

"""The plain presets: round-robin, least-request and session. Baselines, and what some traffic needs.

Source: every load balancer has them. Ours: ties are broken by a hash of the request's id, not by order, and a session's instance is
the first of the homes that the default would give the session's name, so that it moves as rarely as they do.
"""

from fairlead.decision import Decision
from fairlead_gateway.routing.policies.policy_input import PolicyInput
from fairlead_gateway.routing.policies.scored_decision import least_inflight, scored_decision


def round_robin(policy_input: PolicyInput) -> Decision:
    """The next instance, counting around."""
    options = policy_input.candidates
    turn = policy_input.decision_count % len(options)
    return scored_decision(
        policy_input, options[turn], "round-robin", f"turn {turn + 1} of {len(options)}", score_name="turn", scores={}
    )


def least_request(policy_input: PolicyInput) -> Decision:
    """The instance with the fewest of this gateway's requests in flight."""
    best = least_inflight(policy_input, policy_input.candidates)
    scores = {item.id: float(item.inflight) for item in policy_input.candidates}
    return scored_decision(
        policy_input, best, "least-request", f"fewest in flight: {best.inflight}", score_name="inflight", scores=scores
    )


def session(policy_input: PolicyInput) -> Decision:
    """The first home of the session (or, without a session id, of the prompt's key), whatever its load."""
    best = policy_input.candidate(policy_input.homes[0])
    what = "the session's" if policy_input.is_session_key else "no session id was sent; the prompt's"
    return scored_decision(policy_input, best, "session", f"{what} home", score_name="home", scores={})

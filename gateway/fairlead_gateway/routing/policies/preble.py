"""Preble's E2: exploits a cached prefix that is most of the prompt, else explores.

1. **Exploit.** If more than half of the prompt is cached somewhere, the endpoints with the longest
   cached prefix are compared.
2. **Explore.** Else all endpoints are compared.

The least cost L + M + P wins. L is what the instance was given within the window: uncached prefill,
and the output of what is in flight. M is what it would evict for this prompt. P is the prompt's own
uncached part.

Source: Preble (ICLR 2025), section on E2, and its public code (WukLab/preble,
`global_scheduler_with_time.py`). The window is three minutes. Outputs are 45 tokens at 0.15 s until
some were seen, then the mean length and median time of 200.

Changed: the code's tree keeps miss rate × count × seconds for each node and divides by its holders.
Here each dispatch counts where it went, which is the paper's sum. Evicted tokens are priced at the
mean cost of tokens there, if they are not older than the window. The code assumes full memory and
finds no count for older nodes; its eviction is off by default. P, which is 0 in the code, is the
paper's. Of several holders the cheapest is taken, and ties go by hash. Moving hot nodes is
commented out in the code and left out here.
"""

from fairlead.decision import Decision
from fairlead_gateway.routing.candidates import Candidate
from fairlead_gateway.routing.policies.policy_input import PolicyInput, scored_decision


def choose(policy_input: PolicyInput) -> Decision:
    """Chooses the endpoint with the least cost.

    If a cached prefix is over half of the prompt, only endpoints with the longest are compared.
    """
    candidates = policy_input.candidates
    longest = max([candidate.matched_tokens for candidate in candidates])
    if longest > policy_input.prompt_tokens - longest:
        compared = [candidate for candidate in candidates if candidate.matched_tokens == longest]
        reason = f"has {longest:.0f} tokens cached, more than it lacks"
        if len(compared) > 1:
            reason += f"; the cheapest of {len(compared)} that do"
    else:
        compared = candidates
        reason = "no instance has most of the prompt cached: least recent load, evictions and prefill"
    best = min(compared, key=lambda candidate: (_window_cost(candidate), policy_input.tie_break(candidate.id)))
    scores = {candidate.id: _window_cost(candidate) for candidate in compared}
    return scored_decision(policy_input, best, "preble", reason, score_name="window_cost_seconds", scores=scores)


def _window_cost(candidate: Candidate) -> float:
    return candidate.recent_seconds + candidate.eviction_seconds + candidate.prefill_seconds

"""Preble's E2: exploit a cached prefix where it is most of the prompt, else explore where least was asked for in three minutes.

1. **Exploit.** If more of the prompt is cached somewhere than is not (half is not more), those that hold the longest part are asked;
   of several, the one of least cost.
2. **Explore.** Else all are asked, and the one of least cost is taken.

The cost is L + M + P: what the instance was given within the window (prefill that it lacked, and the answers of what is in flight
there), what it would evict for this prompt, and the prompt's own uncached part.

Source: Preble (ICLR 2025), section on E2, and its public code (WukLab/preble, ``global_scheduler_with_time.py``): a window of three
minutes, answers of 45 tokens and 0.15 s a token until some were seen, then the mean length and the median pace of 200.
What we changed: the code's tree keeps miss rate × count × seconds for each node and divides by its holders; ours counts each
dispatch where it went, which is the paper's sum. What is evicted is priced at what tokens there took on average, where it is not
older than the window (the code assumes full memory and finds no count for older nodes; its eviction is off by default). P, which
is 0 in the code, is the paper's. Of several holders the cheapest is taken (the code takes its place among them for its number), and
a tie goes by lot. The moving of hot nodes is commented out in the code and left out here.
"""

from fairlead.decision import Decision
from fairlead_gateway.routing.policies.policy_input import PolicyCandidate, PolicyInput
from fairlead_gateway.routing.policies.scored_decision import scored_decision


def choose(policy_input: PolicyInput) -> Decision:
    """The least cost among the holders, or among all."""
    candidates = policy_input.candidates
    longest = max([item.matched_tokens for item in candidates])
    if longest > policy_input.prompt_tokens - longest:
        compared = [item for item in candidates if item.matched_tokens == longest]
        reason = f"holds {longest:.0f} tokens, more than it lacks"
        if len(compared) > 1:
            reason += f"; the least asked of {len(compared)} that do"
    else:
        compared = candidates
        reason = "nobody holds more of the prompt than it lacks: least asked lately, with evictions and this prompt"
    best = min(compared, key=lambda item: (_window_cost(item), policy_input.tie_break(item.id)))
    scores = {item.id: _window_cost(item) for item in compared}
    return scored_decision(policy_input, best, "preble", reason, score_name="window_cost_seconds", scores=scores)


def _window_cost(candidate: PolicyCandidate) -> float:
    return candidate.recent_seconds + candidate.eviction_seconds + candidate.prefill_seconds

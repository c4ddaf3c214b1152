"""How a published rule says what it chose: the numbers are kept, and written out when somebody asks."""

from collections.abc import Mapping, Sequence
from typing import Final

from fairlead.decision import Decision, DecisionInput, RejectedCandidate
from fairlead_gateway.routing.policies.policy_input import PolicyCandidate, PolicyInput

_NUMBER_FORMAT: Final = "{:.6g}"


class _ScoreExplanation:
    """The options, what each scored by the rule, and why. Where ``scores`` is shorter than the options, the rest was not scored."""

    __slots__ = ("_best", "_candidates", "_reason", "_score_name", "_scores")

    def __init__(
        self,
        candidates: list[PolicyCandidate],
        best: PolicyCandidate,
        reason: str,
        score_name: str,
        scores: Mapping[str, float],
    ) -> None:
        self._candidates = candidates
        self._best = best
        self._reason = reason
        self._score_name = score_name
        self._scores = scores

    def reason(self) -> str:
        """As the rule said it."""
        return self._reason

    def rejected(self) -> tuple[RejectedCandidate, ...]:
        """The others, by what they scored."""
        return tuple(
            RejectedCandidate(item.id, self._rejection(item.id)) for item in self._candidates if item is not self._best
        )

    def inputs(self) -> Mapping[str, DecisionInput]:
        """All that some rule looks at, and the scores."""
        table: dict[str, DecisionInput] = {}
        for item in self._candidates:
            table[f"{item.id}/inflight"] = DecisionInput(float(item.inflight))
            table[f"{item.id}/waiting"] = DecisionInput(float(item.waiting))
            table[f"{item.id}/backlog_seconds"] = DecisionInput(item.backlog_seconds)
            table[f"{item.id}/inflight_tokens"] = DecisionInput(item.inflight_tokens)
            table[f"{item.id}/matched_tokens"] = DecisionInput(item.matched_tokens)
            table[f"{item.id}/predicted_ttft_seconds"] = DecisionInput(item.ttft_seconds)
            if item.id in self._scores:
                table[f"{item.id}/{self._score_name}"] = DecisionInput(self._scores[item.id])
        return table

    def _rejection(self, instance: str) -> str:
        score, best_score = self._scores.get(instance), self._scores.get(self._best.id)
        if score is None:
            return "not looked at by this rule"
        if best_score is None:
            return f"{self._score_name} {_NUMBER_FORMAT.format(score)}"
        if score == best_score:
            return f"{self._score_name} is as good ({_NUMBER_FORMAT.format(score)}); the tie went elsewhere"
        return f"{self._score_name} {_NUMBER_FORMAT.format(score)} against {_NUMBER_FORMAT.format(best_score)}"


def scored_decision(
    policy_input: PolicyInput,
    best: PolicyCandidate,
    rule: str,
    reason: str,
    *,
    score_name: str,
    scores: Mapping[str, float],
) -> Decision:
    """``best`` by ``rule``. ``scores`` is what the rule made of each option that it looked at, under the name ``what``."""
    return Decision(
        best.id,
        rule,
        home=best.id in policy_input.homes if policy_input.homes else None,
        matched_tokens=best.matched_tokens,
        ttft_seconds=best.ttft_seconds,
        explanation=_ScoreExplanation(policy_input.candidates, best, reason, score_name, scores),
    )


def least_inflight(policy_input: PolicyInput, candidates: Sequence[PolicyCandidate]) -> PolicyCandidate:
    """The one with the fewest requests in flight; of equals the one that the lot falls on."""
    best = candidates[0]
    for candidate in candidates:
        if candidate.inflight < best.inflight or (
            candidate.inflight == best.inflight
            and policy_input.tie_break(candidate.id) < policy_input.tie_break(best.id)
        ):
            best = candidate
    return best

"""The decision of a published policy: a choice by score, with its explanation."""

from collections.abc import Mapping, Sequence
from typing import Final

from fairlead.decision import Decision, DecisionInput, RejectedCandidate
from fairlead_gateway.routing.candidates import Candidate
from fairlead_gateway.routing.policies.policy_input import PolicyInput

_NUMBER_FORMAT: Final = "{:.6g}"


class _ScoreExplanation:
    """The explanation of a choice by score. Text and tables are built when they are read.

    scores: by candidate; those that the policy did not score are missing.
    """

    __slots__ = ("_best", "_candidates", "_reason", "_score_name", "_scores")

    def __init__(
        self,
        candidates: list[Candidate],
        best: Candidate,
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
        """Returns the policy's reason."""
        return self._reason

    def rejected(self) -> tuple[RejectedCandidate, ...]:
        """Returns the other candidates with their scores."""
        return tuple(
            RejectedCandidate(candidate.id, self._rejection(candidate.id))
            for candidate in self._candidates
            if candidate is not self._best
        )

    def inputs(self) -> Mapping[str, DecisionInput]:
        """Returns load, cached tokens, predicted TTFT and score of each candidate, by name."""
        table: dict[str, DecisionInput] = {}
        for candidate in self._candidates:
            table[f"{candidate.id}/inflight"] = DecisionInput(float(candidate.inflight))
            table[f"{candidate.id}/waiting"] = DecisionInput(float(candidate.waiting))
            table[f"{candidate.id}/backlog_seconds"] = DecisionInput(candidate.backlog_seconds)
            table[f"{candidate.id}/inflight_tokens"] = DecisionInput(candidate.inflight_tokens)
            table[f"{candidate.id}/matched_tokens"] = DecisionInput(candidate.matched_tokens)
            table[f"{candidate.id}/predicted_ttft_seconds"] = DecisionInput(candidate.ttft_seconds)
            if candidate.id in self._scores:
                table[f"{candidate.id}/{self._score_name}"] = DecisionInput(self._scores[candidate.id])
        return table

    def _rejection(self, instance: str) -> str:
        score, best_score = self._scores.get(instance), self._scores.get(self._best.id)
        if score is None:
            return "not compared by this rule"
        if best_score is None:
            return f"{self._score_name} {_NUMBER_FORMAT.format(score)}"
        if score == best_score:
            return f"{self._score_name} is as good ({_NUMBER_FORMAT.format(score)}); the tie went elsewhere"
        return f"{self._score_name} {_NUMBER_FORMAT.format(score)} against {_NUMBER_FORMAT.format(best_score)}"


def scored_decision(
    policy_input: PolicyInput,
    best: Candidate,
    rule: str,
    reason: str,
    *,
    score_name: str,
    scores: Mapping[str, float],
) -> Decision:
    """Returns the decision for `best`.

    - rule: name of the policy.
    - scores: what the policy computed for each candidate that it scored.
    - score_name: name of these values.
    """
    return Decision(
        best.id,
        rule,
        home=best.id in policy_input.homes if policy_input.homes else None,
        matched_tokens=best.matched_tokens,
        ttft_seconds=best.ttft_seconds,
        explanation=_ScoreExplanation(policy_input.candidates, best, reason, score_name, scores),
    )


def least_inflight(policy_input: PolicyInput, candidates: Sequence[Candidate]) -> Candidate:
    """Returns the candidate with the fewest requests in flight; ties go by hash."""
    best = candidates[0]
    for candidate in candidates:
        if candidate.inflight < best.inflight or (
            candidate.inflight == best.inflight
            and policy_input.tie_break(candidate.id) < policy_input.tie_break(best.id)
        ):
            best = candidate
    return best

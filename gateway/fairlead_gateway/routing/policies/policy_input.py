"""The input of a published policy: a request, and every eligible endpoint.

Published policies differ in their units. Where a source counts uncached tokens, the input has the
seconds to prefill them: the same order between equal engines, the right one between different ones.
Where a source reads an engine's metrics, the input has the in-flight load, which counts a dispatch
at once.

The decision of a published policy: a choice by score, with its explanation.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import xxhash

from fairlead.decision import Decision, DecisionInput, RejectedCandidate
from fairlead_gateway.routing.candidates import Candidate
from fairlead_gateway.routing.request import DEFAULT_TTFT_SECONDS, RouteRequest

QueueKey = tuple[float, float, str]
"""The smallest goes first."""

_NUMBER_FORMAT: Final = "{:.6g}"


def _empty_ring(_: frozenset[str]) -> str | None:
    return None


class PolicyInput:
    """A request and its candidates: at least one, sorted by id.

    - homes: the homes of the routing key, in the order of the rings.
    - is_session_key: the routing key is that of the session, not of the prompt.
    - first_on_ring: returns the first instance on the prompt's ring that is not excluded.
    - decision_count: decisions of the model so far.
    """

    __slots__ = (
        "candidates",
        "decision_count",
        "first_on_ring",
        "homes",
        "is_session_key",
        "objective_seconds",
        "prompt_tokens",
        "request_id",
    )

    def __init__(
        self,
        request_id: str,
        candidates: list[Candidate],
        *,
        homes: tuple[str, ...] = (),
        prompt_tokens: float = 0.0,
        objective_seconds: float = DEFAULT_TTFT_SECONDS,
        is_session_key: bool = False,
        first_on_ring: Callable[[frozenset[str]], str | None] = _empty_ring,
        decision_count: int = 0,
    ) -> None:
        self.request_id = request_id
        self.candidates = candidates
        self.homes = homes
        self.prompt_tokens = prompt_tokens
        self.objective_seconds = objective_seconds
        self.is_session_key = is_session_key
        self.first_on_ring = first_on_ring
        self.decision_count = decision_count

    def candidate(self, instance: str) -> Candidate:
        """Returns the candidate with the id `instance`. Raises KeyError if there is none."""
        for candidate in self.candidates:
            if candidate.id == instance:
                return candidate
        raise KeyError(instance)

    def tie_break(self, instance: str) -> int:
        """Returns a number that breaks ties, by request and instance.

        Why: by order, an idle fleet would send everything to its first member. The number is equal
        in every process.
        """
        return int(xxhash.xxh3_64_intdigest(f"{self.request_id}|{instance}".encode()))


class AssignedRequest:
    """An assigned request that waits for its instance.

    - assigned_at: when it was first assigned, in monotonic seconds.
    - cached_tokens: prompt tokens that the instance has cached; `prefill_seconds` is for the
      others.
    - cached_bytes: the part of the prompt that these tokens are of.

    Why not a dataclass: its constructor is not compiled, and each request makes one.
    """

    __slots__ = (
        "assigned_at",
        "cached_bytes",
        "cached_tokens",
        "id",
        "objective_seconds",
        "prefill_seconds",
        "request",
    )

    def __init__(
        self,
        request: RouteRequest,
        assigned_at: float,
        cached_tokens: float,
        prefill_seconds: float,
        objective_seconds: float,
        cached_bytes: int = 0,
    ) -> None:
        self.request = request
        self.cached_bytes = cached_bytes
        self.id = request.id
        self.assigned_at = assigned_at
        self.cached_tokens = cached_tokens
        self.prefill_seconds = prefill_seconds
        self.objective_seconds = objective_seconds


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

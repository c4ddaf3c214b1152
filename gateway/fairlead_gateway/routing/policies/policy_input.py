"""The input of a published policy: a request, and every eligible endpoint.

Published policies differ in their units. Where a source counts uncached tokens, the input has the
seconds to prefill them: the same order between equal engines, the right one between different ones.
Where a source reads an engine's metrics, the input has the in-flight load, which counts a dispatch
at once.
"""

from collections.abc import Callable

import xxhash

from fairlead_gateway.routing.candidates import Candidate
from fairlead_gateway.routing.request import DEFAULT_TTFT_SECONDS


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


QueueKey = tuple[float, float, str]
"""The smallest goes first."""


class AssignedRequest:
    """An assigned request that waits for its instance.

    - assigned_at: when it was first assigned, in monotonic seconds.
    - cached_tokens: prompt tokens that the instance has cached; `prefill_seconds` is for the
      others.

    Why not a dataclass: its constructor is not compiled, and each request makes one.
    """

    __slots__ = ("assigned_at", "cached_tokens", "id", "objective_seconds", "prefill_seconds")

    def __init__(
        self, id: str, assigned_at: float, cached_tokens: float, prefill_seconds: float, objective_seconds: float
    ) -> None:
        self.id = id
        self.assigned_at = assigned_at
        self.cached_tokens = cached_tokens
        self.prefill_seconds = prefill_seconds
        self.objective_seconds = objective_seconds

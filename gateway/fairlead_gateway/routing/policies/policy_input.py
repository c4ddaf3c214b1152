"""What a published rule is asked: a request, and every instance that may take it with all that some rule looks at.

The published rules differ in their units. Where their sources count uncached tokens, ours count the seconds that an engine takes to
prefill them: the same order between equal engines, and the right one between different ones. Where they read an engine's own
metrics, ours read the ledger (``routing.ledger``), which knows a dispatch when it happens and not when it is scraped next.
"""

from collections.abc import Callable
from dataclasses import dataclass

import xxhash


def _empty_ring(_: frozenset[str]) -> str | None:
    return None


class PolicyCandidate:
    """One instance as it looks now. Seconds are of engine time, tokens are tokens; ``held_bytes`` is all that it should have in its
    cache, as prompt text; ``recent_seconds`` and ``eviction_seconds`` are of ``routing.recent``, zero for rules that do not go by it.
    Nobody changes one."""

    __slots__ = (
        "backlog_seconds",
        "cached_bytes",
        "eviction_seconds",
        "id",
        "inflight",
        "inflight_tokens",
        "kv_tokens",
        "matched_tokens",
        "prefill_seconds",
        "recent_seconds",
        "waiting",
    )

    def __init__(
        self,
        id: str,
        *,
        inflight: int = 0,
        waiting: int = 0,
        backlog_seconds: float = 0.0,
        inflight_tokens: float = 0.0,
        kv_tokens: int = 430_000,
        matched_tokens: float = 0.0,
        prefill_seconds: float = 0.0,
        cached_bytes: int = 0,
        recent_seconds: float = 0.0,
        eviction_seconds: float = 0.0,
    ) -> None:
        self.id = id
        self.inflight = inflight
        self.waiting = waiting
        self.backlog_seconds = backlog_seconds
        self.inflight_tokens = inflight_tokens
        self.kv_tokens = kv_tokens
        self.matched_tokens = matched_tokens
        self.prefill_seconds = prefill_seconds
        self.cached_bytes = cached_bytes
        self.recent_seconds = recent_seconds
        self.eviction_seconds = eviction_seconds

    @property
    def ttft_seconds(self) -> float:
        """Predicted time to the first token: what is before us, then our own uncached prompt."""
        return self.backlog_seconds + self.prefill_seconds


class PolicyInput:
    """A request and its ``options``, at least one, sorted by id. ``homes`` are of its key, the first ring's first; ``named`` says
    whether that key is a session's. ``ring`` finds the first on the ring from the prompt's first block that is not among those given,
    None when all are. ``turn`` counts the model's decisions."""

    __slots__ = (
        "candidates",
        "decision_count",
        "first_on_ring",
        "homes",
        "is_session_key",
        "now",
        "objective_seconds",
        "prompt_tokens",
        "request_id",
    )

    def __init__(
        self,
        request_id: str,
        candidates: list[PolicyCandidate],
        *,
        homes: tuple[str, ...] = (),
        prompt_tokens: float = 0.0,
        objective_seconds: float = 5.0,
        is_session_key: bool = False,
        first_on_ring: Callable[[frozenset[str]], str | None] = _empty_ring,
        decision_count: int = 0,
        now: float = 0.0,
    ) -> None:
        self.request_id = request_id
        self.candidates = candidates
        self.homes = homes
        self.prompt_tokens = prompt_tokens
        self.objective_seconds = objective_seconds
        self.is_session_key = is_session_key
        self.first_on_ring = first_on_ring
        self.decision_count = decision_count
        self.now = now

    def candidate(self, instance: str) -> PolicyCandidate:
        """The option of that id, which is among them."""
        for candidate in self.candidates:
            if candidate.id == instance:
                return candidate
        raise KeyError(instance)

    def tie_break(self, instance: str) -> int:
        """What breaks ties: drawn for each request and instance, since by order an idle fleet sends everything to its first member,
        and equal for every process that is asked the same."""
        return int(xxhash.xxh3_64_intdigest(f"{self.request_id}|{instance}".encode()))


QueueKey = tuple[float, float, str]
"""The smallest goes first."""


@dataclass(frozen=True, slots=True)
class AssignedRequest:
    """``hit_tokens`` of its prompt are cached where it is to go, ``own_seconds`` takes the rest; it ``arrived`` when it was assigned
    first, and wants its first token ``objective_seconds`` later."""

    id: str
    assigned_at: float
    cached_tokens: float
    prefill_seconds: float
    objective_seconds: float

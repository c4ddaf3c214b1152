"""What a published rule is asked: a request, and every instance that may take it with all that some rule looks at.

The published rules differ in their units. Where their sources count uncached tokens, ours count the seconds that an engine takes to
prefill them: the same order between equal engines, and the right one between different ones. Where they read an engine's own
metrics, ours read the ledger (``routing.ledger``), which knows a dispatch when it happens and not when it is scraped next.
"""

from collections.abc import Callable

import xxhash


def _nowhere(_: frozenset[str]) -> str | None:
    return None


class Option:
    """One instance as it looks now. Seconds are of engine time, tokens are tokens; ``held_bytes`` is all that it should have in its
    cache, as prompt text; ``recent_seconds`` and ``eviction_seconds`` are of ``routing.recent``, zero for rules that do not go by it.
    Nobody changes one."""

    __slots__ = (
        "backlog_seconds",
        "eviction_seconds",
        "held_bytes",
        "id",
        "inflight",
        "inflight_tokens",
        "kv_tokens",
        "matched_tokens",
        "own_seconds",
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
        own_seconds: float = 0.0,
        held_bytes: int = 0,
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
        self.own_seconds = own_seconds
        self.held_bytes = held_bytes
        self.recent_seconds = recent_seconds
        self.eviction_seconds = eviction_seconds

    @property
    def ttft_seconds(self) -> float:
        """Predicted time to the first token: what is before us, then our own uncached prompt."""
        return self.backlog_seconds + self.own_seconds


class Question:
    """A request and its ``options``, at least one, sorted by id. ``homes`` are of its key, the first ring's first; ``named`` says
    whether that key is a session's. ``ring`` finds the first on the ring from the prompt's first block that is not among those given,
    None when all are. ``turn`` counts the model's decisions."""

    __slots__ = ("homes", "named", "now", "objective_seconds", "options", "prompt_tokens", "request_id", "ring", "turn")

    def __init__(
        self,
        request_id: str,
        options: list[Option],
        *,
        homes: tuple[str, ...] = (),
        prompt_tokens: float = 0.0,
        objective_seconds: float = 5.0,
        named: bool = False,
        ring: Callable[[frozenset[str]], str | None] = _nowhere,
        turn: int = 0,
        now: float = 0.0,
    ) -> None:
        self.request_id = request_id
        self.options = options
        self.homes = homes
        self.prompt_tokens = prompt_tokens
        self.objective_seconds = objective_seconds
        self.named = named
        self.ring = ring
        self.turn = turn
        self.now = now

    def option(self, instance: str) -> Option:
        """The option of that id, which is among them."""
        for item in self.options:
            if item.id == instance:
                return item
        raise KeyError(instance)

    def lot(self, instance: str) -> int:
        """What breaks ties: drawn for each request and instance, since by order an idle fleet sends everything to its first member,
        and equal for every process that is asked the same."""
        return int(xxhash.xxh3_64_intdigest(f"{self.request_id}|{instance}".encode()))

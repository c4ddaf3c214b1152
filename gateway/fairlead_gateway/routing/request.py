"""The values that routing works on: the request as far as a route needs it, and one instance as it looks right now."""

from collections.abc import Hashable

from fairlead_gateway.routing.prefix import PrefixChain


class RouteRequest:
    """``prompt_tokens`` may be an estimate; ``session`` is the client's conversation id where it
    sends one, and ``pin`` a keyed hash of it (64-bit), by which gateways tell one another who served it last. Like a candidate it
    is never changed."""

    __slots__ = ("adapter", "chain", "id", "max_tokens", "pin", "prompt_tokens", "session")

    def __init__(
        self,
        id: str,
        chain: PrefixChain,
        prompt_tokens: float,
        max_tokens: float | None = None,
        session: str | None = None,
        adapter: str | None = None,
        pin: Hashable = None,
    ) -> None:
        self.pin = pin
        self.id = id
        self.chain = chain
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.session = session
        self.adapter = adapter


class Candidate:
    """One instance with what a request would meet there. Seconds are engine time, tokens are tokens.

    Not frozen, for speed: a frozen one takes six times as long to make. Nobody changes it, but for ``cost_seconds``, which the
    preset that compares candidates puts in, and what ``pulls`` says.
    """

    __slots__ = (
        "backlog_seconds",
        "cost_seconds",
        "holder",
        "home",
        "id",
        "indexed_tokens",
        "inflight",
        "inflight_tokens",
        "kv_tokens",
        "matched_tokens",
        "own_seconds",
        "pinned",
        "pull_tokens",
        "recompute_seconds",
        "source",
    )

    def __init__(
        self,
        id: str,
        backlog_seconds: float,
        own_seconds: float,
        matched_tokens: float,
        inflight: int,
        inflight_tokens: float,
        kv_tokens: int,
        home: bool = False,
        holder: bool = False,
        indexed_tokens: float = -1.0,
        pinned: bool = False,
    ) -> None:
        self.id = id
        self.backlog_seconds = backlog_seconds
        self.own_seconds = own_seconds
        self.matched_tokens = matched_tokens
        self.inflight = inflight
        self.inflight_tokens = inflight_tokens
        self.kv_tokens = kv_tokens
        self.home = home
        self.holder = holder
        self.indexed_tokens = indexed_tokens  # of those matched, what the index says; negative where it says nothing
        self.cost_seconds = 0.0
        self.pinned = pinned  # it served the session last
        self.source: str | None = None
        self.pull_tokens = self.recompute_seconds = 0.0

    def pulls(self, source: str, tokens: float, seconds: float) -> None:
        """It gets so many tokens from the instance ``source``, and has prefilled the prompt after ``seconds``."""
        self.source, self.pull_tokens = source, tokens
        self.recompute_seconds, self.own_seconds = self.own_seconds, seconds

    @property
    def ttft_seconds(self) -> float:
        """Predicted time to the first token: what is before us, then our own uncached prompt."""
        return self.backlog_seconds + self.own_seconds

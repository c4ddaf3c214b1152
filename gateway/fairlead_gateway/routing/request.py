"""The values that routing works on: the request as far as a route needs it, and one instance as it looks right now."""

from collections.abc import Hashable

from fairlead_gateway.routing.prefix.prefix_hash import PrefixChain


class RouteRequest:
    """``prompt_tokens`` may be an estimate; ``session`` is the client's conversation id where it
    sends one, and ``pin`` a keyed hash of it (64-bit), by which gateways tell one another who served it last. Like a candidate it
    is never changed."""

    __slots__ = ("adapter", "chain", "id", "max_tokens", "prompt_tokens", "session", "session_hash")

    def __init__(
        self,
        id: str,
        chain: PrefixChain,
        prompt_tokens: float,
        max_tokens: float | None = None,
        session: str | None = None,
        adapter: str | None = None,
        session_hash: Hashable = None,
    ) -> None:
        self.session_hash = session_hash
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
        "id",
        "indexed_tokens",
        "inflight",
        "inflight_tokens",
        "is_holder",
        "is_home",
        "kv_tokens",
        "matched_tokens",
        "prefill_seconds",
        "pull_source",
        "pull_tokens",
        "recompute_seconds",
        "served_session",
    )

    def __init__(
        self,
        id: str,
        backlog_seconds: float,
        prefill_seconds: float,
        matched_tokens: float,
        inflight: int,
        inflight_tokens: float,
        kv_tokens: int,
        is_home: bool = False,
        is_holder: bool = False,
        indexed_tokens: float = -1.0,
        served_session: bool = False,
    ) -> None:
        self.id = id
        self.backlog_seconds = backlog_seconds
        self.prefill_seconds = prefill_seconds
        self.matched_tokens = matched_tokens
        self.inflight = inflight
        self.inflight_tokens = inflight_tokens
        self.kv_tokens = kv_tokens
        self.is_home = is_home
        self.is_holder = is_holder
        self.indexed_tokens = indexed_tokens  # of those matched, what the index says; negative where it says nothing
        self.cost_seconds = 0.0
        self.served_session = served_session  # it served the session last
        self.pull_source: str | None = None
        self.pull_tokens = self.recompute_seconds = 0.0

    def add_pull(self, source: str, tokens: float, seconds: float) -> None:
        """It gets so many tokens from the instance ``source``, and has prefilled the prompt after ``seconds``."""
        self.pull_source, self.pull_tokens = source, tokens
        self.recompute_seconds, self.prefill_seconds = self.prefill_seconds, seconds

    @property
    def ttft_seconds(self) -> float:
        """Predicted time to the first token: what is before us, then our own uncached prompt."""
        return self.backlog_seconds + self.prefill_seconds

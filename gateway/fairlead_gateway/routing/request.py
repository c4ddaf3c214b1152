"""The values that routing works on: the request as far as a route needs it, and one instance as it looks right now."""

from dataclasses import dataclass

from fairlead_gateway.routing.prefix import PrefixChain


@dataclass(slots=True)
class RouteRequest:
    """``prompt_tokens`` may be an estimate; ``session`` is the client's conversation id where it
    sends one. Like a candidate it is never changed."""

    id: str
    chain: PrefixChain
    prompt_tokens: float
    max_tokens: float | None = None
    session: str | None = None
    adapter: str | None = None


class Candidate:
    """One instance with what a request would meet there. Seconds are engine time, tokens are tokens.

    Not frozen, for speed: a frozen one takes six times as long to make. Nobody changes it.
    """

    __slots__ = (
        "backlog_seconds",
        "holder",
        "home",
        "id",
        "inflight",
        "inflight_tokens",
        "kv_tokens",
        "matched_tokens",
        "own_seconds",
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

    @property
    def ttft_seconds(self) -> float:
        """Predicted time to the first token: what is before us, then our own uncached prompt."""
        return self.backlog_seconds + self.own_seconds

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


@dataclass(slots=True)
class Candidate:
    """One instance with what a request would meet there. Seconds are engine time, tokens are tokens.

    Not frozen, for speed: a frozen one takes six times as long to make. Nobody changes it.
    """

    id: str
    backlog_seconds: float
    own_seconds: float
    matched_tokens: float
    inflight: int
    inflight_tokens: float
    kv_tokens: int
    home: bool = False
    holder: bool = False

    @property
    def ttft_seconds(self) -> float:
        """Predicted time to the first token: what is before us, then our own uncached prompt."""
        return self.backlog_seconds + self.own_seconds

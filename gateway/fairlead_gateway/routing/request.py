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

"""The part of a client request that routing decisions use."""

from collections.abc import Hashable, Sequence
from typing import Final

from fairlead_gateway.routing.prefix.prefix_hash import MediaPart, PrefixChain

DEFAULT_OUTPUT_TOKENS: Final = 256.0
"""The expected output of a request, while nothing is known."""
DEFAULT_TTFT_SECONDS: Final = 5.0
"""The TTFT objective of a model that states none."""
NO_INSTANCES: Final[frozenset[str]] = frozenset()


class RouteRequest:
    """A request as routing sees it. It is never changed.

    - prompt_tokens: may be an estimate.
    - session: the client's conversation id, after the salt of its cache scope.
    - sequences: answers that an engine computes for it, for all of its prompts; `max_tokens` is of
        each.
    - media, media_tokens: the parts that are not text, and how many of the tokens are theirs.
    - caller: whose request it is; the tokens of a byte of text are learned by caller.
    - takes_canary: it belongs to the conversations that a canary gets; set before it is routed.
    - session_hash: a keyed 64-bit hash of `session`, by which gateways share session affinity.
    """

    __slots__ = (
        "caller",
        "chain",
        "id",
        "max_tokens",
        "media",
        "media_tokens",
        "prompt_tokens",
        "sequences",
        "session",
        "session_hash",
        "takes_canary",
    )

    def __init__(
        self,
        id: str,
        chain: PrefixChain,
        prompt_tokens: float,
        max_tokens: float | None = None,
        session: str | None = None,
        session_hash: Hashable = None,
    ) -> None:
        self.session_hash = session_hash
        self.id = id
        self.chain = chain
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.session = session
        self.sequences = 1
        self.media: Sequence[MediaPart] = ()
        self.media_tokens = 0.0
        self.caller: Hashable = ""
        self.takes_canary = False

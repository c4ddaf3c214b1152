"""The last prompts that were sent, in case the index wants to know what one of them is in tokens.

What is kept are references to bodies that are in memory anyway, few and small in sum, and only where instances tell what they
hold. A prompt goes to the helper when the helper asks for it, through the channel, and nowhere else but back to an engine of its
model.
"""

from collections import OrderedDict
from typing import Final

from fairlead.limits import Limits
from fairlead_gateway.fields import Chat, Completion
from fairlead_gateway.model import Ask
from fairlead_gateway.routing import RouteRequest

CHAT: Final = "chat"
COMPLETION: Final = "completion"


class Samples:
    """By model and the hash of all of the prompt's text."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.link_samples
        self._most_bytes = limits.link_sample_bytes
        self._kept: OrderedDict[tuple[str, int], tuple[str, bytes]] = OrderedDict()
        self._bytes = 0

    def offer(self, ask: Ask, route: RouteRequest) -> None:
        """A prompt is being sent."""
        parsed = ask.parsed
        kind = CHAT if isinstance(parsed, Chat) else COMPLETION if isinstance(parsed, Completion) else None
        size = len(ask.body)
        if kind is None or not route.chain.hashes or size * 4 > self._most_bytes:
            return
        key = (ask.key, route.chain.tail)
        if key in self._kept:
            return
        self._kept[key] = kind, ask.body
        self._bytes += size
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            _, (_, oldest) = self._kept.popitem(last=False)
            self._bytes -= len(oldest)

    def take(self, model: str, tail: int) -> tuple[str, bytes] | None:
        """One of them, and its kind; None when it is not here any more."""
        found = self._kept.pop((model, tail), None)
        if found is not None:
            self._bytes -= len(found[1])
        return found

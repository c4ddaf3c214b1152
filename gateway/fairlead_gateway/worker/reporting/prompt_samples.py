"""The last prompts that were sent, in case the index wants to know what one of them is in tokens.

What is kept are references to bodies that are in memory anyway, few and small in sum, and only
where instances tell what they hold. A prompt goes to the helper when the helper asks for it,
through the channel, and nowhere else but back to an engine of its model.
"""

from collections import OrderedDict

from fairlead.limits import Limits
from fairlead_gateway.ipc.messages import CHAT_SAMPLE, COMPLETION_SAMPLE
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.worker.openai.request import ModelRequest
from fairlead_gateway.worker.openai.schemas import ChatRequest, CompletionRequest


class PromptSampleBuffer:
    """By model and the hash of all of the prompt's text."""

    def __init__(self, limits: Limits) -> None:
        self._max_count = limits.prefix_map_samples
        self._max_bytes = limits.prefix_map_sample_bytes
        self._samples: OrderedDict[tuple[str, int], tuple[str, bytes]] = OrderedDict()
        self._bytes = 0

    def offer(self, request: ModelRequest, route: RouteRequest) -> None:
        """A prompt is being sent."""
        parsed = request.fields
        kind = (
            CHAT_SAMPLE
            if isinstance(parsed, ChatRequest)
            else COMPLETION_SAMPLE
            if isinstance(parsed, CompletionRequest)
            else None
        )
        size = len(request.body)
        if kind is None or not route.chain.hashes or size * 4 > self._max_bytes:
            return
        key = (request.model_key, route.chain.tail)
        if key in self._samples:
            return
        self._samples[key] = kind, request.body
        self._bytes += size
        while len(self._samples) > self._max_count or self._bytes > self._max_bytes:
            _, (_, oldest) = self._samples.popitem(last=False)
            self._bytes -= len(oldest)

    def take(self, model: str, tail: int) -> tuple[str, bytes] | None:
        """One of them, and its kind; None when it is not here any more."""
        found = self._samples.pop((model, tail), None)
        if found is not None:
            self._bytes -= len(found[1])
        return found

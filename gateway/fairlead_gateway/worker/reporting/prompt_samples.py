"""The last prompts that were sent, in case the KV-cache index needs one of them as tokens.

The buffer keeps at most `prefix_map_samples` bodies of `prefix_map_sample_bytes` in sum, also
after their requests end. It is used only if
instances report their cache. A prompt leaves the worker only when the index requests it. It goes to
the supervisor, and from there only to an engine of its model.
"""

from collections import OrderedDict

from fairlead.limits import Limits
from fairlead_gateway.ipc.messages import CHAT_SAMPLE, COMPLETION_SAMPLE
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.worker.openai.request import ModelRequest
from fairlead_gateway.worker.openai.schemas import ChatRequest, CompletionRequest


class PromptSampleBuffer:
    """The last prompts by model and hash of the whole prompt."""

    def __init__(self, limits: Limits) -> None:
        self._max_count = limits.prefix_map_samples
        self._max_bytes = limits.prefix_map_sample_bytes
        self._samples: OrderedDict[tuple[str, int], tuple[str, bytes]] = OrderedDict()
        self._bytes = 0

    def offer(self, request: ModelRequest, route: RouteRequest) -> None:
        """Adds the prompt of a chat or a completion that is being sent.

        Ignores prompts that are too long or shorter than a block. Removes the oldest if necessary.
        """
        fields = request.fields
        kind = (
            CHAT_SAMPLE
            if isinstance(fields, ChatRequest)
            else COMPLETION_SAMPLE
            if isinstance(fields, CompletionRequest)
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
        """Removes a prompt and returns its kind and body; None if it is no longer buffered.

        tail: the hash of the whole prompt.
        """
        sample = self._samples.pop((model, tail), None)
        if sample is not None:
            self._bytes -= len(sample[1])
        return sample

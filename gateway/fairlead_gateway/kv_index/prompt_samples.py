"""The last prompts of a worker, in case the KV-cache index needs one as tokens.

They are kept also after their requests end, and only if instances report their cache. A prompt
leaves the worker only when the index requests it. It goes to the supervisor, and from there only to
an engine of its model.

An engine that sends the ids of a prompt with its first token need not be queried for them. So a
prompt whose response may still bring them waits for that.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from fairlead_gateway.kv_index.messages import PromptSample
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.upstream.stream_record import TokenTap

PREFIX_MAP_SAMPLES: Final = 256
"""Limit: last prompts of a worker that the index may query."""
PREFIX_MAP_SAMPLE_BYTES: Final = 8 * 1024 * 1024
"""Limit: the same in bytes; none over a quarter of it is kept."""

_TEMPLATE_TOKENS: Final = 65_536
"""The most tokens of a prompt beyond the bytes of its request: chat templates add some.

Why: an engine could otherwise send millions of tokens for each of many small prompts.
"""


class PromptSampleBuffer:
    """The last prompts by model and hash of the whole prompt.

    wanted: the prompts that the index has requested and that wait for their tokens.
    """

    def __init__(self) -> None:
        self._max_count = PREFIX_MAP_SAMPLES
        self._max_bytes = PREFIX_MAP_SAMPLE_BYTES
        self._samples: OrderedDict[tuple[str, int], tuple[PromptSample, TokenTap | None]] = OrderedDict()
        self._bytes = 0
        self.wanted: dict[tuple[str, int], None] = {}

    def offer(self, request: ModelRequest, route: RouteRequest, tokens: TokenTap | None = None) -> None:
        """Adds the prompt of a request that generates and is being sent.

        Ignores prompts that are too long or shorter than a block. Removes the oldest if necessary.

        tokens: those that the engine will send; None if it sends none.
        """
        kind, size = request.dialect.name, len(request.body)
        if (
            request.dialect.form is None
            or request.is_passthrough
            or not route.chain.hashes
            or size * 4 > self._max_bytes
        ):
            return
        key = (request.model_key, route.chain.tail)
        if key in self._samples:
            return
        adapter = request.adapter
        sample = PromptSample(route.chain.tail, kind, request.body, "" if adapter is None else adapter.name)
        self._samples[key] = sample, tokens
        self._bytes += size
        while len(self._samples) > self._max_count or self._bytes > self._max_bytes:
            oldest, (dropped, _) = self._samples.popitem(last=False)
            self._bytes -= len(dropped.body)
            self.wanted.pop(oldest, None)

    def take(self, model: str, tails: Sequence[int], *, has_ended: bool = False) -> list[PromptSample]:
        """Removes and returns the prompts that are buffered, with the tokens that engines sent.

        A prompt whose engine will send them stays, and is `wanted`.

        tails: the hashes of whole prompts.
        has_ended: their requests have ended, so nothing is waited for.
        """
        taken: list[PromptSample] = []
        for tail in tails:
            key = (model, tail)
            sample, tokens = self._samples.get(key, (None, None))
            if sample is None:
                continue
            if tokens is not None and not (tokens.prompt_tokens or tokens.problem or has_ended):
                self.wanted[key] = None
                continue
            del self._samples[key]
            self.wanted.pop(key, None)
            self._bytes -= len(sample.body)
            sample.tokens = b"" if tokens is None else tokens.prompt_ids(len(sample.body) + _TEMPLATE_TOKENS)
            taken.append(sample)
        return taken

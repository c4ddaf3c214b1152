"""The fetcher of prompts' tokens from engines, and the setting that says whether it is used.

The tokens of a prompt are fetched if a part of it is not linked. The rate per model is limited. The
worker that sent the prompt supplies its body. If it no longer has the body, a later prompt of the
same kind serves as well. For a stream whose engine sends the tokens of the prompt, it supplies
these, too, and no engine is queried.

Any other query goes to the engine that the prompt was sent to. After a failed one, no engine is
queried for `tokenize_repeat_seconds`. After a status that will not change soon, such as 404, none
is queried for `tokenize_refused_seconds`.

The requested model may be a LoRA adapter, and the blocks are those of the adapter. The sample names
one that gateways load. The name of any other has a parent in `/v1/models`. Nothing is learned from
an engine whose `/v1/models` cannot be read.

Why: if a prompt of an adapter counted as one of the base model, the index would predict blocks that
the engine does not find.
"""

import asyncio
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from typing import Final

from fairlead.engines.lora_api import adapter_prefix
from fairlead.errors import SettingsError, Unavailable
from fairlead.fleet.model import Instance
from fairlead.runtime.clock import Clock
from fairlead_gateway.kv_index.messages import PromptSample
from fairlead_gateway.kv_index.supervisor.tokenize_api import TokenizeQuery, adapter_names, parse_tokens, tokenize_query
from fairlead_gateway.peers.messages import Dispatch

TOKENIZE_QUERIES_PER_SECOND: Final = 20.0
"""Limit: prompts of one model sent to its engines' /tokenize."""
TOKENIZE_QUERIES_PENDING: Final = 64
"""Limit: prompts of one model that wait for that; more are dropped."""
TOKENIZE_REPEAT_SECONDS: Final = 5.0
"""Limit: until the same prompt may be sent again."""
TOKENIZE_REFUSED_SECONDS: Final = 60.0
"""Limit: until an engine that refused is queried again."""
KV_ADAPTER_POLL_SECONDS: Final = 30.0
"""Limit: the time for which a gateway remembers whether a name is an adapter of an engine."""

_MAX_PENDING: Final = 4_096
_LASTING_ERRORS: Final = frozenset(f"answered {status}" for status in (401, 403, 404, 405, 501))
_PAUSES_SECONDS: Final = (0.25, 0.25, 0.25)
"""Pauses before each further try to link, which waits for the engine's block size."""

EnginePost = Callable[[Instance, bytes | None], Awaitable[bytes]]
"""Posts a body to an engine's `/tokenize`; None: gets `/v1/models`. Raises Unavailable."""
LearnTokens = Callable[[Dispatch, Sequence[int], TokenizeQuery, str | None], int | None]
"""Links a prompt to its tokens. Returns the number of whole blocks; None if it cannot link yet.

Last argument: the adapter, if the prompt is for one.
"""


class TokenSource(StrEnum):
    """The source of prompts' tokens.

    - ENGINE: engines, with the first token of a stream, or by their `/tokenize`. Prompts of token
      ids need neither.
    - OFF: the gateway has no KV-cache index.
    """

    ENGINE = "engine"
    OFF = "off"


def parse_token_source(text: str | None) -> TokenSource:
    """Returns the source that the setting names; ENGINE if it is empty.

    Raises SettingsError for an unknown source.
    """
    try:
        return TokenSource(text or TokenSource.ENGINE)
    except ValueError:
        raise SettingsError(
            f"{text!r} is not a source of tokens", field="FAIRLEAD_LINKS", hint="use engine or off"
        ) from None


class TokenFetcher:
    """The fetcher of one model.

    - post: queries an engine.
    - learn: links a prompt to the tokens.
    """

    def __init__(
        self,
        post: EnginePost,
        learn: LearnTokens,
        clock: Clock,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._post = post
        self._pause = pause
        self._learn = learn
        self._clock = clock
        self._allowance = TOKENIZE_QUERIES_PER_SECOND
        self._allowance_at = clock.now()
        self._pending: OrderedDict[int, tuple[float, Dispatch]] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused_until = 0.0
        self._brings_tokens = False  # workers have supplied tokens
        self._adapters: dict[tuple[str, str], tuple[float, bool]] = {}
        self.warning = ""

    def should_fetch(self, row: Dispatch) -> bool:
        """Returns True if the worker should send the body of this prompt, which is not linked.

        If so, it counts against the allowed queries per second.
        """
        now = self._clock.now()
        if len(self._tasks) >= TOKENIZE_QUERIES_PENDING or (now < self._refused_until and not self._brings_tokens):
            return False
        known = self._pending.get(row.tail)
        if known is not None and now < known[0] + TOKENIZE_REPEAT_SECONDS:
            return False
        rate = TOKENIZE_QUERIES_PER_SECOND
        self._allowance = min(rate, self._allowance + (now - self._allowance_at) * rate)
        self._allowance_at = now
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        self._pending[row.tail] = now, row
        self._pending.move_to_end(row.tail)
        if len(self._pending) > _MAX_PENDING:
            self._pending.popitem(last=False)
        return True

    def on_sample(self, sample: PromptSample, instances: Mapping[str, Instance]) -> None:
        """Starts to fetch and link the tokens of a body for which `should_fetch` returned True.

        instances: the present instances by id.
        """
        known = self._pending.get(sample.tail)
        instance = None if known is None else instances.get(known[1].instance)
        if known is None or instance is None or len(self._tasks) >= TOKENIZE_QUERIES_PENDING:
            return
        task = asyncio.get_running_loop().create_task(self._fetch(sample, known[1], instance))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    @property
    def description(self) -> str:
        text = "engines send the tokens of prompts, or are queried for them"
        return f"{text}; {self.warning}" if self.warning else text

    async def _fetch(self, sample: PromptSample, row: Dispatch, instance: Instance) -> None:
        """Learns links from the tokens that the sample brings, else from its own ids, else from its
        engine.
        """
        name = (
            f"{adapter_prefix(instance.engine, instance.model)}{sample.adapter}"
            if sample.adapter
            else instance.served_name or instance.model
        )
        query = tokenize_query(sample.kind, sample.body, name)
        if query is None:
            return
        try:
            adapter = sample.adapter or (name if await self._is_adapter(instance, name) else None)
            tokens: Sequence[int] = query.tokens
            if sample.tokens:
                self._brings_tokens = True
                tokens = array("I", sample.tokens)
            elif query.engine_request is not None:
                if self._clock.now() < self._refused_until:
                    return
                tokens = parse_tokens(await self._post(instance, query.engine_request))
                self.warning = ""
        except Unavailable as error:
            self.warning = f"{instance.id}: {error.message}"
            lasting = error.message in _LASTING_ERRORS
            pause = TOKENIZE_REFUSED_SECONDS if lasting else TOKENIZE_REPEAT_SECONDS
            self._refused_until = self._clock.now() + pause
            return
        await self._learn_links(row, tokens, query, adapter)

    async def _learn_links(
        self, row: Dispatch, tokens: Sequence[int], query: TokenizeQuery, adapter: str | None
    ) -> None:
        """Tries to link a prompt several times, with pauses.

        Why: the engine's events may come later than the tokens.
        """
        for pause in (0.0, *_PAUSES_SECONDS):
            await self._pause(pause)
            if self._learn(row, tokens, query, adapter) is not None:
                break

    async def _is_adapter(self, instance: Instance, name: str) -> bool:
        """Returns True if the engine serves an adapter under this name. Cached for a short time."""
        now, key = self._clock.now(), (instance.id, name)
        known = self._adapters.get(key)
        if known is None or now >= known[0]:
            is_adapter = name in adapter_names(await self._post(instance, None))
            while len(self._adapters) >= _MAX_PENDING:
                del self._adapters[next(iter(self._adapters))]
            known = self._adapters[key] = now + KV_ADAPTER_POLL_SECONDS, is_adapter
        return known[1]

"""Prompts whose tokens are asked for, of engines or of the tokenizer here: which, how often, and what came of it.

A prompt is asked about when a part of it is not linked, at most so many times a second for each model, and by an engine that it was
sent to itself. The worker that sent it still has its body; if it is gone by then, the next prompt like it is as good. An engine that
does not tell tokens is asked again a minute later.

What an engine is asked for may be a LoRA adapter: then its name is one of those with a parent in ``/v1/models``, and its blocks are
those of the adapter. An engine that does not say so is not learned from: a prompt of an adapter that counted as one of the base
model would be credited with what an engine will not find.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

from fairlead.clock import Clock
from fairlead.errors import Unavailable
from fairlead.fleet import Instance
from fairlead.limits import Limits
from fairlead_gateway.channel_messages import Sample, SentRow
from fairlead_gateway.indexing.here import Here
from fairlead_gateway.indexing.links import ENGINE_WORDS
from fairlead_gateway.indexing.tokens import Asked, adapters, answered, understood

_PENDING_MOST: Final = 4_096
_REFUSALS: Final = frozenset(f"answered {status}" for status in (401, 403, 404, 405, 501))
_PAUSES_SECONDS: Final = (0.25, 0.25, 0.25)
_PROOF_PAUSES_SECONDS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
"""An engine's word waits for its block size; tokens of our own wait until the prompt was computed, behind others perhaps."""

Post = Callable[[Instance, bytes | None], Awaitable[bytes]]
"""A question to an engine's ``/tokenize``; None: what ``/v1/models`` lists. Raises Unavailable in a few words."""


class Learn(Protocol):
    """Takes a prompt's tokens."""

    def __call__(
        self, row: SentRow, tokens: Sequence[int], asked: Asked, adapter: str | None, *, doubted: bool
    ) -> int | None:
        """How many whole blocks they are; None while they cannot be linked, as ``Bridge.learn`` says."""
        ...


class Asking:
    """One model. ``post`` asks an engine, ``here`` the tokenizer on this machine; ``learn`` takes what they answer."""

    def __init__(
        self,
        post: Post,
        learn: Learn,
        clock: Clock,
        limits: Limits,
        here: Here | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._post = post
        self._pause = pause
        self._here = here
        self._learn = learn
        self._clock = clock
        self._limits = limits
        self._room = limits.link_asks_per_second
        self._filled = clock.now()
        self._pending: OrderedDict[int, tuple[float, SentRow]] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused_until = 0.0
        self._adapters: dict[tuple[str, str], tuple[float, bool]] = {}
        self.problem = ""
        self.learned = 0
        self.asked = 0

    def wants(self, row: SentRow) -> bool:
        """Whether the body of a prompt that is not linked is wanted."""
        now, limits = self._clock.now(), self._limits
        if len(self._tasks) >= limits.link_asks_waiting or not (self._engines_asked or self._here_asked):
            return False
        known = self._pending.get(row.tail)
        if known is not None and now < known[0] + limits.link_asked_again_seconds:
            return False
        rate = limits.link_asks_per_second
        self._room = min(rate, self._room + (now - self._filled) * rate)
        self._filled = now
        if self._room < 1.0:
            return False
        self._room -= 1.0
        self._pending[row.tail] = now, row
        self._pending.move_to_end(row.tail)
        if len(self._pending) > _PENDING_MOST:
            self._pending.popitem(last=False)
        return True

    def given(self, sample: Sample, instances: Mapping[str, Instance]) -> None:
        """The body of one of those; ``instances`` are those that there are now, by id."""
        known = self._pending.get(sample.tail)
        instance = None if known is None else instances.get(known[1].instance)
        if known is None or instance is None or len(self._tasks) >= self._limits.link_asks_waiting:
            return
        task = asyncio.get_running_loop().create_task(self._ask(sample, known[1], instance))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()

    @property
    def how(self) -> str:
        """How the model's prompts are tokenized, for people, and what is in the way."""
        words = ENGINE_WORDS if self._here is None else self._here.words
        return f"{words}; {self.problem}" if self.problem else words

    @property
    def _engines_asked(self) -> bool:
        return self._clock.now() >= self._refused_until

    @property
    def _here_asked(self) -> bool:
        return self._here is not None and self._here.trusted

    async def _ask(self, sample: Sample, row: SentRow, instance: Instance) -> None:
        name = instance.served_name or instance.model
        asked = understood(sample.kind, sample.body, name)
        if asked is None:
            return
        try:
            adapter = name if await self._is_adapter(instance, name) else None
            own = None if self._here is None else await self._here.tokens(asked)
            tokens: Sequence[int] = asked.tokens if own is None else own
            if own is None and asked.question is not None:
                if not self._engines_asked:
                    return
                self.asked += 1
                tokens = answered(await self._post(instance, asked.question))
                self.problem = ""
        except Unavailable as error:
            self.problem = f"{instance.id}: {error.message}"
            lasting = error.message in _REFUSALS
            pause = self._limits.link_refused_seconds if lasting else self._limits.link_asked_again_seconds
            self._refused_until = self._clock.now() + pause
            return
        await self._teach(row, tokens, asked, adapter, None if own is None else self._here)

    async def _teach(
        self, row: SentRow, tokens: Sequence[int], asked: Asked, adapter: str | None, here: Here | None
    ) -> None:
        """Its events may come later than the tokens. ``here``: these are its."""
        for pause in (0.0, *(_PAUSES_SECONDS if here is None else _PROOF_PAUSES_SECONDS)):
            await self._pause(pause)
            blocks = self._learn(row, tokens, asked, adapter, doubted=here is not None)
            if blocks is not None:
                self.learned += 1
                if here is not None and blocks:
                    here.proven()
                return
        if here is not None:
            here.unproven()

    async def _is_adapter(self, instance: Instance, name: str) -> bool:
        """Whether the engine serves an adapter under this name, as it said a moment ago."""
        now, key = self._clock.now(), (instance.id, name)
        known = self._adapters.get(key)
        if known is None or now >= known[0]:
            found = name in adapters(await self._post(instance, None))
            while len(self._adapters) >= _PENDING_MOST:
                del self._adapters[next(iter(self._adapters))]
            known = self._adapters[key] = now + self._limits.kv_names_seconds, found
        return known[1]

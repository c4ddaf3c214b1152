"""Prompts whose tokens engines are asked for: which, how often, and what came of it.

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
from typing import Final

from fairlead.clock import Clock
from fairlead.errors import Unavailable
from fairlead.fleet import Instance
from fairlead.limits import Limits
from fairlead_gateway.channel_messages import Sample, SentRow
from fairlead_gateway.indexing.tokens import adapters, answered, understood

_PENDING_MOST: Final = 4_096
_REFUSALS: Final = frozenset(f"answered {status}" for status in (401, 403, 404, 405, 501))
_LEARN_TRIES: Final = 4
_LEARN_PAUSE_SECONDS: Final = 0.25

Post = Callable[[Instance, bytes | None], Awaitable[bytes]]
"""A question to an engine's ``/tokenize``; None: what ``/v1/models`` lists. Raises Unavailable in a few words."""
Learn = Callable[["SentRow", Sequence[int], str | None, str | None, bytes], bool]
"""A prompt's row, tokens, salt, adapter, and text where its tokens are in it; False while no engine has told of its first block."""


class Asking:
    """One model. ``post`` asks an engine, ``learn`` takes what it answers."""

    def __init__(self, post: Post, learn: Learn, clock: Clock, limits: Limits) -> None:
        self._post = post
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
        if now < self._refused_until or len(self._tasks) >= limits.link_asks_waiting:
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

    async def _ask(self, sample: Sample, row: SentRow, instance: Instance) -> None:
        name = instance.served_name or instance.model
        asked = understood(sample.kind, sample.body, name)
        if asked is None:
            return
        tokens: Sequence[int] = asked.tokens
        try:
            adapter = name if await self._is_adapter(instance, name) else None
            if asked.question is not None:
                self.asked += 1
                tokens = answered(await self._post(instance, asked.question))
        except Unavailable as error:
            self.problem = f"{instance.id}: {error.message}"
            lasting = error.message in _REFUSALS
            pause = self._limits.link_refused_seconds if lasting else self._limits.link_asked_again_seconds
            self._refused_until = self._clock.now() + pause
            return
        for _ in range(_LEARN_TRIES):
            if self._learn(row, tokens, asked.salt, adapter, asked.text):
                self.problem = ""
                self.learned += 1
                return
            await asyncio.sleep(_LEARN_PAUSE_SECONDS)  # its events may come later than the answer

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

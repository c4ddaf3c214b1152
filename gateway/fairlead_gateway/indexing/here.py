"""One model's tokenizer on this machine: whether it is asked, and what people are told of it.

Chats are not tokenized here. What a chat is in tokens, the engine's own template says, with the engine's own defaults for tools,
thinking and the shape of contents; a copy of it that differs in one token would be a tokenizer for other prompts. A prompt of text
has no template: it is the tokenizer's file, and special tokens around it, that decide.

**Nothing is linked that is not proven.** A file may be of another revision than the engine's. So a prompt that was tokenized here is
linked when some engine told that it holds the last whole block of just these tokens, and with it, by the chain, all before it. When
so many in a row are not borne out, the file is taken for the wrong one and engines are asked, for a minute.
"""

import os
from collections.abc import Sequence
from typing import Protocol

from fairlead.clock import Clock
from fairlead.errors import Unavailable
from fairlead.limits import Limits
from fairlead_gateway.indexing.links import ENGINE_WORDS
from fairlead_gateway.indexing.tokens import Asked


class Tokenize(Protocol):
    """As ``tokenizing.service.Tokenizing``."""

    async def tokens(self, path: str, text: bytes, *, special: bool) -> Sequence[int]:
        """The tokens of a JSON string. Raises Unavailable in a few words."""
        ...

    def note(self, path: str) -> str:
        """What is worth telling people of a file's tokenizer."""
        ...


class Here:
    """``folder`` holds ``NAMESPACE/MODEL/tokenizer.json``; ``key`` is the model's ``namespace/model``."""

    def __init__(self, tokenize: Tokenize, folder: str, key: str, clock: Clock, limits: Limits) -> None:
        parts = key.split("/")
        safe = len(parts) == 2 and not {*parts} & {"", ".", ".."} and "\0" not in key
        self.path = os.path.join(folder, *parts, "tokenizer.json") if safe else ""
        self._tokenize = tokenize
        self._clock = clock
        self._limits = limits
        self._problem = "" if safe else "the model's name is no path"
        self._unproven = 0
        self._distrusted_until = float("-inf")
        self.told = 0

    @property
    def trusted(self) -> bool:
        """Whether it is worth asking."""
        return bool(self.path) and self._clock.now() >= self._distrusted_until

    async def tokens(self, asked: Asked) -> Sequence[int] | None:
        """The tokens of a prompt of text; None where an engine has to be asked."""
        if asked.prompt is None or not self.trusted:
            return None
        try:
            found = await self._tokenize.tokens(self.path, asked.prompt, special=asked.special)
        except Unavailable as error:
            self._problem = error.message
            return None
        self._problem = ""
        return found

    def proven(self) -> None:
        """Engines hold just these tokens."""
        self.told += 1
        self._unproven = 0

    def unproven(self) -> None:
        """No engine told of a prompt's tokens in time."""
        self._unproven += 1
        if self._unproven >= self._limits.link_unproven:
            self._unproven = 0
            self._distrusted_until = self._clock.now() + self._limits.link_refused_seconds

    @property
    def words(self) -> str:
        """How the model's prompts are tokenized, and why not here."""
        if self.path and not self.trusted:
            return f"{ENGINE_WORDS}: no engine told of what {self.path} makes of {self._limits.link_unproven} prompts in a row"
        if self._problem:
            return f"{ENGINE_WORDS}: {self.path or 'no tokenizer'}: {self._problem}"
        note = self._tokenize.note(self.path)
        return "prompts of text are tokenized by the gateway's process, engines are asked for the tokens of chats" + (
            f"; {note}" if note else ""
        )

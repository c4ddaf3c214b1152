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
from dataclasses import dataclass
from typing import Protocol

from fairlead.errors import Unavailable
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.supervisor.kv_index.token_source import ENGINE_DESCRIPTION, TokenSource
from fairlead_gateway.supervisor.kv_index.tokenize_api import TokenizeQuery


class Tokenize(Protocol):
    """As ``tokenizing.service.Tokenizing``."""

    async def tokenize(self, path: str, text: bytes, *, add_special_tokens: bool) -> Sequence[int]:
        """The tokens of a JSON string. Raises Unavailable in a few words."""
        ...

    def warning(self, path: str) -> str:
        """What is worth telling people of a file's tokenizer."""
        ...


@dataclass(frozen=True, slots=True)
class Tokenization:
    """The way in which the index learns the tokens of prompts.

    tokenize, folder: the local tokenizers; used if `source` is PROCESS.
    """

    source: TokenSource
    tokenize: Tokenize | None = None
    folder: str = ""


class LocalTokenizer:
    """``folder`` holds ``NAMESPACE/MODEL/tokenizer.json``; ``key`` is the model's ``namespace/model``."""

    def __init__(self, tokenize: Tokenize, folder: str, key: str, clock: Clock, limits: Limits) -> None:
        parts = key.split("/")
        safe = len(parts) == 2 and not {*parts} & {"", ".", ".."} and "\0" not in key
        self.path = os.path.join(folder, *parts, "tokenizer.json") if safe else ""
        self._tokenize = tokenize
        self._clock = clock
        self._limits = limits
        self._error = "" if safe else "the model's name is no path"
        self._unverified_count = 0
        self._distrusted_until = float("-inf")
        self.verified_count = 0

    @property
    def is_trusted(self) -> bool:
        """Whether it is worth asking."""
        return bool(self.path) and self._clock.now() >= self._distrusted_until

    async def tokenize(self, query: TokenizeQuery) -> Sequence[int] | None:
        """The tokens of a prompt of text; None where an engine has to be asked."""
        if query.prompt is None or not self.is_trusted:
            return None
        try:
            found = await self._tokenize.tokenize(self.path, query.prompt, add_special_tokens=query.add_special_tokens)
        except Unavailable as error:
            self._error = error.message
            return None
        self._error = ""
        return found

    def mark_verified(self) -> None:
        """Engines hold just these tokens."""
        self.verified_count += 1
        self._unverified_count = 0

    def mark_unverified(self) -> None:
        """No engine told of a prompt's tokens in time."""
        self._unverified_count += 1
        if self._unverified_count >= self._limits.tokenizer_unverified_prompts:
            self._unverified_count = 0
            self._distrusted_until = self._clock.now() + self._limits.tokenize_refused_seconds

    @property
    def description(self) -> str:
        """How the model's prompts are tokenized, and why not here."""
        if self.path and not self.is_trusted:
            prompts = self._limits.tokenizer_unverified_prompts
            return f"{ENGINE_DESCRIPTION}: no engine told of what {self.path} makes of {prompts} prompts in a row"
        if self._error:
            return f"{ENGINE_DESCRIPTION}: {self.path or 'no tokenizer'}: {self._error}"
        note = self._tokenize.warning(self.path)
        return "prompts of text are tokenized by the gateway's process, engines are asked for the tokens of chats" + (
            f"; {note}" if note else ""
        )

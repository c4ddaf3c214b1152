"""The tokenizer of one model on this machine: whether it is used, and its state as text.

It tokenizes text prompts only. Engines are queried for the tokens of chats.

A prompt that was tokenized here is linked once an engine reports the last whole block of exactly
these tokens. After `tokenizer_unverified_prompts` prompts in a row without such a report, the file
counts as wrong. For `tokenize_refused_seconds`, engines are then queried instead.

Why: the tokens of a chat depend on the engine's chat template, with its defaults for tools,
thinking and the shape of contents. One different token gives another prompt. The tokens of a text
prompt depend only on the file and the special tokens. The file may be of another revision than the
engine's. The chain of hashes proves all blocks before the reported one.

The setting that says how the KV-cache index learns the tokens of prompts.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from fairlead.errors import SettingsError, Unavailable
from fairlead.runtime.clock import Clock
from fairlead_gateway.kv_index.supervisor.tokenize_api import TokenizeQuery

TOKENIZE_REFUSED_SECONDS: Final = 60.0
"""Limit: until an engine that refused is queried again."""
TOKENIZER_UNVERIFIED_PROMPTS: Final = 8
"""Limit: consecutive prompts of our tokenizer that no engine confirms, until engines are queried
for a minute.
"""


class TokenSource(StrEnum):
    """The source of prompts' tokens.

    - ENGINE: the `/tokenize` endpoint of engines. Prompts of token ids need no query.
    - PROCESS: a process of the gateway tokenizes text prompts of models whose tokenizer is on this
      machine. Engines are queried for all other prompts.
    - OFF: the gateway has no KV-cache index.
    """

    ENGINE = "engine"
    PROCESS = "process"
    OFF = "off"


ENGINE_DESCRIPTION = "engines are queried for the tokens of prompts"


def parse_token_source(text: str | None, tokenizers: str | None = None) -> TokenSource:
    """Returns the source that the setting names; ENGINE if it is empty.

    tokenizers: the folder of tokenizers.

    Raises SettingsError for an unknown source, and for PROCESS without a folder.
    """
    try:
        source = TokenSource(text or TokenSource.ENGINE)
    except ValueError:
        raise SettingsError(
            f"{text!r} is not a source of tokens", field="FAIRLEAD_LINKS", hint="use engine, process or off"
        ) from None
    if source is TokenSource.PROCESS and not tokenizers:
        raise SettingsError(
            "prompts cannot be tokenized by the gateway without a folder of tokenizers", field="FAIRLEAD_TOKENIZERS"
        )
    return source


class Tokenize(Protocol):
    """A tokenizer for any file, as `tokenizer.client.TokenizerClient`."""

    async def tokenize(self, path: str, text: bytes, *, add_special_tokens: bool) -> Sequence[int]:
        """Returns the tokens of a JSON string. Raises Unavailable with a short reason."""

    def warning(self, path: str) -> str:
        """Returns the warning about a file's tokenizer; empty if there is none."""


@dataclass(frozen=True, slots=True)
class Tokenization:
    """The way in which the index learns the tokens of prompts.

    tokenize, folder: the local tokenizers; used if `source` is PROCESS.
    """

    source: TokenSource
    tokenize: Tokenize | None = None
    folder: str = ""


class LocalTokenizer:
    """The tokenizer of one model.

    - folder: contains `NAMESPACE/MODEL/tokenizer.json`.
    - key: the model's `namespace/model`.
    """

    def __init__(self, tokenize: Tokenize, folder: str, key: str, clock: Clock) -> None:
        parts = key.split("/")
        safe = len(parts) == 2 and not {*parts} & {"", ".", ".."} and "\0" not in key
        self.path = os.path.join(folder, *parts, "tokenizer.json") if safe else ""
        self._tokenize = tokenize
        self._clock = clock
        self._error = "" if safe else "the model's name is not usable as a path"
        self._unverified_count = 0
        self._distrusted_until = float("-inf")

    @property
    def is_trusted(self) -> bool:
        """True if there is a path and the file does not count as wrong at present."""
        return bool(self.path) and self._clock.now() >= self._distrusted_until

    async def tokenize(self, query: TokenizeQuery) -> Sequence[int] | None:
        """Returns the tokens of a text prompt; None if an engine has to be queried."""
        if query.prompt is None or not self.is_trusted:
            return None
        try:
            tokens = await self._tokenize.tokenize(self.path, query.prompt, add_special_tokens=query.add_special_tokens)
        except Unavailable as error:
            self._error = error.message
            return None
        self._error = ""
        return tokens

    def on_checked(self, *, is_verified: bool) -> None:
        """Records whether an engine reported the tokens of a prompt in time.

        After too many unverified ones in a row, the tokenizer is not trusted for
        `tokenize_refused_seconds`.
        """
        self._unverified_count = 0 if is_verified else self._unverified_count + 1
        if self._unverified_count >= TOKENIZER_UNVERIFIED_PROMPTS:
            self._unverified_count = 0
            self._distrusted_until = self._clock.now() + TOKENIZE_REFUSED_SECONDS

    @property
    def description(self) -> str:
        """A text that says how the model's prompts are tokenized and, if not here, why not."""
        if self.path and not self.is_trusted:
            prompts = TOKENIZER_UNVERIFIED_PROMPTS
            return f"{ENGINE_DESCRIPTION}: no engine reported the tokens of {self.path} for {prompts} prompts in a row"
        if self._error:
            return f"{ENGINE_DESCRIPTION}: {self.path or 'no tokenizer'}: {self._error}"
        warning = self._tokenize.warning(self.path)
        return "text prompts are tokenized by the gateway's process, engines are queried for the tokens of chats" + (
            f"; {warning}" if warning else ""
        )

"""One small fixed vocabulary that every simulated engine shares: fast, deterministic and reversible.

Text is cut over its UTF-8 bytes: an optional space and one to three lower-case ASCII letters make one token, any other
byte is a token of its own. English comes out near 2.5 bytes a token; `` abc def`` is exactly 4 bytes a token, so that replay can
build a prompt of any length in tokens. Control tokens are never read out of text: only the chat template writes them.
"""

import hashlib
import re
import struct
from collections.abc import Iterable, Mapping
from itertools import product
from string import ascii_lowercase
from typing import Any

CONTROL_TOKENS = (
    "<|pad|>",
    "<|begin|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<|unused|>",
)
_FIRST_BYTE_TOKEN = len(CONTROL_TOKENS)
_FIRST_WORD_TOKEN = _FIRST_BYTE_TOKEN + 256
_PIECE_PATTERN = re.compile(r" ?[a-z]{1,3}|[\x00-\xff]")


class Tokenizer:
    """Build one and share it: the tables take some milliseconds and a few megabytes."""

    pad, bos, eos, system, user, assistant, tool = range(7)

    def __init__(self) -> None:
        letters = ["".join(word) for size in (1, 2, 3) for word in product(ascii_lowercase, repeat=size)]
        single = [chr(value) for value in range(256)]
        self._pieces = [*CONTROL_TOKENS, *single, *letters, *(" " + word for word in letters)]
        self._ids = {piece: token for token, piece in enumerate(self._pieces) if token >= _FIRST_BYTE_TOKEN}
        self._roles = {"system": self.system, "user": self.user, "assistant": self.assistant, "tool": self.tool}
        # A 16-bit number picks a word: the last 17,576 pieces are a space and three letters.
        spaced = range(len(self._pieces) - 26**3, len(self._pieces))
        self._word_tokens = [spaced[value % len(spaced)] for value in range(65_536)]
        self._word_texts = [self._pieces[token] for token in self._word_tokens]

    @property
    def vocab_size(self) -> int:
        """Token ids are 0 … vocab_size − 1."""
        return len(self._pieces)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; never a control token."""
        bytewise = text if text.isascii() else text.encode("utf-8", "surrogatepass").decode("latin-1")
        return list(map(self._ids.__getitem__, _PIECE_PATTERN.findall(bytewise)))

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``. Raises IndexError for an id outside the vocabulary; broken UTF-8 becomes U+FFFD."""
        pieces = self._pieces
        text = "".join([pieces[token] for token in tokens])
        return text if text.isascii() else text.encode("latin-1").decode("utf-8", "replace")

    def piece(self, token: int) -> str:
        """The text of one token; a byte that is only a part of a character becomes U+FFFD."""
        return self.decode((token,))

    def printable_piece(self, token: int) -> str:
        """One token as vocabularies print it: printable, a space as ``Ġ`` and a line feed as ``Ċ``."""
        piece = self._pieces[token]
        return piece if token < _FIRST_BYTE_TOKEN else "".join(_printable_char(ord(char)) for char in piece)

    def encode_chat(self, messages: Iterable[Mapping[str, Any]], *, continues_last: bool = False) -> list[int]:
        """The fixed chat template: begin, then role, content and end of each message, then the assistant's turn.

        ``unfinished``: the last message stays open, and what follows is its rest.
        ``content`` is a string, None, or a list of parts of which the ``text`` ones are read.
        """
        line = self.encode("\n")
        tokens = [self.bos]
        for message in messages:
            role = str(message.get("role", "user"))
            known = self._roles.get(role)
            tokens += [known] if known is not None else self.encode(f"<|{role}|>")
            tokens += line
            tokens += self.encode(_content_text(message.get("content")))
            tokens.append(self.eos)
            tokens += line
        if continues_last:
            return tokens[: -1 - len(line)]
        return [*tokens, self.assistant, *line]

    def word_token(self, value: int) -> int:
        """The word token that a 16-bit number picks."""
        return self._word_tokens[value]

    def random_tokens(self, n_tokens: int, seed: int | str) -> list[int]:
        """``n_tokens`` word tokens drawn from ``seed``; a shorter draw is the beginning of a longer one."""
        return [self._word_tokens[value] for value in _random_numbers(n_tokens, seed)]

    def random_text(self, n_tokens: int, seed: int | str) -> str:
        """Text of exactly ``n_tokens`` tokens and 4 bytes each; equal seeds give equal text, and parts may be joined."""
        return "".join([self._word_texts[value] for value in _random_numbers(n_tokens, seed)])


def _random_numbers(count: int, seed: int | str) -> tuple[int, ...]:
    """``count`` 16-bit numbers from an extendable hash: the same on every machine and every Python."""
    return struct.unpack(f"<{count}H", hashlib.shake_128(str(seed).encode()).digest(2 * count))


def _content_text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part.get("text", "") if isinstance(part, dict) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return str(content)


def _printable_char(byte: int) -> str:
    """The usual byte-level alphabet: what prints stays, the rest moves up to U+0100 and on, in order."""
    if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
        return chr(byte)
    moved = byte if byte <= 32 else byte - 94 if byte <= 160 else 67
    return chr(256 + moved)

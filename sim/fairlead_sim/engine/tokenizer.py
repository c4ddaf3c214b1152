"""The small fixed vocabulary of all simulated engines: fast, deterministic and reversible.

The text is cut over its UTF-8 bytes. An optional space and one to three lower-case ASCII letters
make one token; any other byte is a token of its own. English has about 2.5 bytes per token. `` abc
def`` has exactly 4 bytes per token, so that ``fairlead replay`` can build a prompt of any length in
tokens. Text never yields control tokens; only the chat template writes them.
"""

import hashlib
import re
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from string import ascii_lowercase
from typing import Any

from fairlead_sim.engine.chat_template import turn_texts

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
_PIECE_PATTERN = re.compile(r" ?[a-z]{1,3}|[\x00-\xff]")


class Tokenizer:
    """The tokenizer. Share one: its tables take milliseconds and a few megabytes."""

    pad, bos, eos, system, user, assistant, tool = range(7)

    def __init__(self) -> None:
        letters = ["".join(word) for size in (1, 2, 3) for word in product(ascii_lowercase, repeat=size)]
        single = [chr(value) for value in range(256)]
        self._pieces = [*CONTROL_TOKENS, *single, *letters, *(" " + word for word in letters)]
        self._ids = {piece: token for token, piece in enumerate(self._pieces) if token >= _FIRST_BYTE_TOKEN}
        spaced = range(len(self._pieces) - 26**3, len(self._pieces))  # a space and three letters
        self._ids_of_four_bytes = {
            int.from_bytes(self._pieces[token].encode(), sys.byteorder): token for token in spaced
        }
        self._roles = {"system": self.system, "user": self.user, "assistant": self.assistant, "tool": self.tool}
        # A 16-bit number picks one of these.
        self._word_tokens = [spaced[value % len(spaced)] for value in range(65_536)]
        self._joined_tokens = [token - len(letters) for token in self._word_tokens]
        self._word_texts = [self._pieces[token] for token in self._word_tokens]

    @property
    def vocab_size(self) -> int:
        """Returns the number of tokens; ids begin at 0."""
        return len(self._pieces)

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of ``text``, without control tokens."""
        data = text.encode("utf-8", "surrogatepass")
        if data.startswith(b" ") and not len(data) % 4:
            try:
                return list(map(self._ids_of_four_bytes.__getitem__, memoryview(data).cast("I")))
            except KeyError:  # not only words of three letters
                pass
        bytewise = text if text.isascii() else data.decode("latin-1")
        return list(map(self._ids.__getitem__, _PIECE_PATTERN.findall(bytewise)))

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of ``tokens``; broken UTF-8 becomes U+FFFD.

        Raises IndexError for an id outside the vocabulary.
        """
        pieces = self._pieces
        text = "".join([pieces[token] for token in tokens])
        return text if text.isascii() else text.encode("latin-1").decode("utf-8", "replace")

    def piece(self, token: int) -> str:
        return self.decode((token,))

    def printable_piece(self, token: int) -> str:
        piece = self._pieces[token]
        return piece if token < _FIRST_BYTE_TOKEN else "".join(_printable_char(ord(char)) for char in piece)

    def encode_chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        continues_last: bool = False,
    ) -> list[int]:
        """Returns the tokens of a conversation in the fixed chat template.

        The template writes a begin token, the role, text and end of each turn, and then the opening
        of the assistant's message. The content is a string, None or a list of parts, of which the
        ``text`` ones count.

        continues_last: leaves the last message open for its continuation.
        """
        return self.encode_turns(turn_texts(messages, tools), continues_last=continues_last)

    def encode_turns(self, turns: Iterable[tuple[str, str]], *, continues_last: bool = False) -> list[int]:
        """Returns the tokens of turns, each a role and a text, in the fixed chat template."""
        line = self.encode("\n")
        tokens = [self.bos]
        for role, text in turns:
            known = self._roles.get(role)
            tokens += [known] if known is not None else self.encode(f"<|{role}|>")
            tokens += line
            tokens += self.encode(text)
            tokens.append(self.eos)
            tokens += line
        if continues_last:
            return tokens[: -1 - len(line)]
        return [*tokens, self.assistant, *line]

    def word_token(self, value: int) -> int:
        return self._word_tokens[value]

    def joined_token(self, value: int) -> int:
        return self._joined_tokens[value]

    def piece_bytes(self, token: int) -> bytes:
        """Returns the bytes of one token's text."""
        return self._pieces[token].encode("latin-1")

    def random_tokens(self, n_tokens: int, seed: int | str) -> list[int]:
        """Returns ``n_tokens`` word tokens drawn from ``seed``; a shorter draw is a prefix of a
        longer one.
        """
        return [self._word_tokens[value] for value in _random_numbers(n_tokens, seed)]

    def random_text(self, n_tokens: int, seed: int | str) -> str:
        """Returns text of ``n_tokens`` tokens, 4 bytes each; equal seeds give equal text.

        Such texts may be joined.
        """
        return "".join([self._word_texts[value] for value in _random_numbers(n_tokens, seed)])


def _random_numbers(count: int, seed: int | str) -> tuple[int, ...]:
    """Returns ``count`` 16-bit numbers of an extendable hash, the same on every machine and
    Python.
    """
    return struct.unpack(f"<{count}H", hashlib.shake_128(str(seed).encode()).digest(2 * count))


def _printable_char(byte: int) -> str:
    """Returns the character of a byte in the usual byte-level alphabet.

    Printable bytes stay; the others map to U+0100 and on, in order.
    """
    if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
        return chr(byte)
    moved = byte if byte <= 32 else byte - 94 if byte <= 160 else 67
    return chr(256 + moved)

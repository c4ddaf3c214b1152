"""The script of a reply: the whole answer of one choice, drawn before its first token.

Every token of a free answer is a space and three letters, so the answer is a byte string cut every
four bytes. Its text tokenizes to the same ids, so that the next turn of a conversation finds its
blocks. A stop string or a natural end only shortens the script. The scheduler sees a number of
tokens. An answer of a required form has its own token ends.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from fairlead_sim.engine.tokenizer import Tokenizer

TOKEN_BYTES = 4
MEDIAN_NATURAL_TOKENS = 120
MAX_NATURAL_TOKENS = 2_000


@dataclass(frozen=True, slots=True)
class ReplyLimits:
    """The bounds of a reply and what ends it.

    - may_end_naturally: it may end before ``max_tokens``.
    - length_factor: of its natural length.
    - greedy_decoder: yields the tokens in place of a seed (``GreedyDecoder.decode``).
    """

    max_tokens: int
    min_tokens: int = 0
    may_end_naturally: bool = False
    length_factor: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False
    forced_text: str | None = None
    greedy_decoder: Callable[[int, int | None], tuple[list[int], bool]] | None = None


@dataclass(frozen=True, slots=True)
class ReplyScript:
    """The tokens of a reply and its text.

    - ids: all tokens; a last token that only ends the reply has no text.
    - held_back: characters that a stream delays until they cannot be part of a stop string.
    - ends: the end of each token's text, if not every four bytes.
    """

    ids: list[int]
    text: bytes
    reason: str
    stop_reason: str | int | None = None
    held_back: int = 0
    ends: list[int] | None = None

    @property
    def is_even(self) -> bool:
        """Whether every token but the last has four bytes and is sent without delay."""
        return self.ends is None and not self.held_back

    def text_bytes(self, tokens: int) -> int:
        """Returns how many bytes of ``text`` the first ``tokens`` tokens have."""
        if tokens >= len(self.ids):
            return len(self.text)
        if self.ends is not None:
            return self.ends[tokens - 1] if tokens else 0
        return min(len(self.text), tokens * TOKEN_BYTES)

    def streamed_bytes(self, tokens: int) -> int:
        """Returns how many bytes of ``text`` a stream's client has after ``tokens`` tokens."""
        generated_bytes = self.text_bytes(tokens)
        return generated_bytes if tokens >= len(self.ids) else max(0, generated_bytes - self.held_back)


def natural_length(seed: str, factor: float = 1.0) -> int:
    """Returns the natural length of an answer: log-normal, 2 to 2,000 tokens, median 120 times
    ``factor``.
    """
    tokens = round(factor * MEDIAN_NATURAL_TOKENS * math.exp2(Random(seed).gauss(0.0, 1.0)))
    return max(2, min(MAX_NATURAL_TOKENS, tokens))


def write_script(tokenizer: Tokenizer, seed: str, limits: ReplyLimits) -> ReplyScript:
    """Returns the script for a seed and limits; equal arguments give equal scripts."""
    if limits.forced_text is not None:
        return _forced_script(tokenizer, limits.forced_text, limits.max_tokens)
    ids, text, ends_itself = _unstopped_reply(tokenizer, seed, limits)
    held_back = 0 if limits.include_stop else max((len(string) for string in limits.stop), default=1) - 1

    token_at = _first_stop_token(ids, limits)
    stopped = _first_stop_string(text, limits)
    if stopped is not None:
        at, string = stopped
        count = -(-(at + len(string)) // TOKEN_BYTES)
        if token_at is None or count <= token_at:
            cut = at + len(string) if limits.include_stop else at
            return ReplyScript(ids[:count], text[:cut].encode(), "stop", string, held_back)
    if token_at is not None:
        return ReplyScript(
            ids[: token_at + 1], text[: token_at * TOKEN_BYTES].encode(), "stop", ids[token_at], held_back
        )
    if ends_itself:
        return ReplyScript([*ids, tokenizer.eos], text.encode(), "stop", None, held_back)
    return ReplyScript(ids, text.encode(), "length", None, held_back)


def _unstopped_reply(tokenizer: Tokenizer, seed: str, limits: ReplyLimits) -> tuple[list[int], str, bool]:
    """Returns tokens and text before any stop, and whether they end naturally."""
    if limits.greedy_decoder is not None:
        ids, ends_itself = limits.greedy_decoder(
            limits.max_tokens, limits.min_tokens if limits.may_end_naturally else None
        )
        return ids, tokenizer.decode(ids), ends_itself
    natural = limits.max_tokens
    if limits.may_end_naturally:
        natural = max(natural_length(seed, limits.length_factor), limits.min_tokens + 1)
    ends_itself = natural < limits.max_tokens
    spoken = natural - 1 if ends_itself else limits.max_tokens
    return tokenizer.random_tokens(spoken, seed), tokenizer.random_text(spoken, seed), ends_itself


def _forced_script(tokenizer: Tokenizer, text: str, max_tokens: int) -> ReplyScript:
    """Returns the script of a given text, cut at ``max_tokens`` but not within a character."""
    ids = [*tokenizer.encode(text), tokenizer.eos]
    raw = text.encode()
    ends = list(accumulate(len(tokenizer.printable_piece(token)) for token in ids[:-1]))
    starts = [at for at, byte in enumerate(raw) if byte & 0xC0 != 0x80] + [len(raw)]
    ends = [starts[max(0, bisect_left(starts, end + 1) - 1)] for end in ends] + [len(raw)]
    if len(ids) <= max_tokens:
        return ReplyScript(ids, raw, "stop", ends=ends)
    return ReplyScript(ids[:max_tokens], raw[: ends[max_tokens - 1]], "length", ends=ends)


def _first_stop_token(ids: list[int], wish: ReplyLimits) -> int | None:
    if not wish.stop_token_ids:
        return None
    return next((at for at, token in enumerate(ids) if token in wish.stop_token_ids and at >= wish.min_tokens), None)


def _first_stop_string(text: str, wish: ReplyLimits) -> tuple[int, str] | None:
    """Returns the position and text of the stop string that completes first, or None.

    Stop strings that end within ``min_tokens`` do not count.
    """
    matches: list[tuple[int, str]] = []
    for string in wish.stop:
        at = text.find(string, max(0, wish.min_tokens * TOKEN_BYTES - len(string) + 1))
        if string and at != -1:
            matches.append((at, string))
    return min(matches, key=lambda match: match[0] + len(match[1]), default=None)

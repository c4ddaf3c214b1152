"""What an engine will say: the whole answer of one choice is drawn from a seed before its first token is computed.

Every token is a space and three letters, so an answer is a byte string cut every four bytes, and reading it again gives
the same token ids (the next turn of a conversation finds its blocks). A stop string or a natural end only shortens
the script; the scheduler core then sees nothing but a number of tokens.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from fairlead_sim.tokenizer import Tokenizer

PIECE = 4
NATURAL_MEDIAN = 120
NATURAL_LONGEST = 2_000


@dataclass(frozen=True, slots=True)
class Wish:
    """How long an answer may be and what ends it. ``natural``: it may also end by itself.
    ``greedy`` says the tokens instead of a seed (see ``greedy.go_on``)."""

    max_tokens: int
    min_tokens: int = 0
    natural: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    keep_stop: bool = False
    forced: str | None = None
    greedy: Callable[[int, int | None], tuple[list[int], bool]] | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """``ids`` are all tokens that will be generated; ``text`` is what the client sees in the end.

    The last token has no text when it is what ended the answer. ``held`` characters stay back in a stream until they
    cannot be part of a stop string any more. ``ends``: where each token's text ends, when not every four bytes.
    """

    ids: list[int]
    text: bytes
    reason: str
    stop_reason: str | int | None = None
    held: int = 0
    ends: list[int] | None = None

    @property
    def even(self) -> bool:
        """Whether every token but the last is four bytes, sent at once."""
        return self.ends is None and not self.held

    def said(self, tokens: int) -> int:
        """Bytes of ``text`` that so many tokens make."""
        if tokens >= len(self.ids):
            return len(self.text)
        if self.ends is not None:
            return self.ends[tokens - 1] if tokens else 0
        return min(len(self.text), tokens * PIECE)

    def seen(self, tokens: int) -> int:
        """Of these, the bytes that the client of a stream has."""
        said = self.said(tokens)
        return said if tokens >= len(self.ids) else max(0, said - self.held)


def natural_length(seed: str) -> int:
    """Tokens after which an answer ends by itself: log-normal, 2 to 2,000, half of them below 120."""
    drawn = round(NATURAL_MEDIAN * math.exp2(Random(seed).gauss(0.0, 1.0)))
    return max(2, min(NATURAL_LONGEST, drawn))


def write(tokenizer: Tokenizer, seed: str, wish: Wish) -> Script:
    """The answer to one wish; the same seed and wish give the same answer."""
    if wish.forced is not None:
        return _recite(tokenizer, wish.forced, wish.max_tokens)
    ids, text, ends_itself = _spoken(tokenizer, seed, wish)
    held = 0 if wish.keep_stop else max((len(string) for string in wish.stop), default=1) - 1

    token_at = _first_token(ids, wish)
    stopped = _first_string(text, wish)
    if stopped is not None:
        at, string = stopped
        count = -(-(at + len(string)) // PIECE)
        if token_at is None or count <= token_at:
            cut = at + len(string) if wish.keep_stop else at
            return Script(ids[:count], text[:cut].encode(), "stop", string, held)
    if token_at is not None:
        return Script(ids[: token_at + 1], text[: token_at * PIECE].encode(), "stop", ids[token_at], held)
    if ends_itself:
        return Script([*ids, tokenizer.eos], text.encode(), "stop", None, held)
    return Script(ids, text.encode(), "length", None, held)


def _spoken(tokenizer: Tokenizer, seed: str, wish: Wish) -> tuple[list[int], str, bool]:
    """Tokens and text as far as nothing stops them, and whether they end by themselves."""
    if wish.greedy is not None:
        ids, ends_itself = wish.greedy(wish.max_tokens, wish.min_tokens if wish.natural else None)
        return ids, tokenizer.decode(ids), ends_itself
    natural = max(natural_length(seed), wish.min_tokens + 1) if wish.natural else wish.max_tokens
    ends_itself = natural < wish.max_tokens
    spoken = natural - 1 if ends_itself else wish.max_tokens
    return tokenizer.tokens_of(spoken, seed), tokenizer.text_of(spoken, seed), ends_itself


def _recite(tokenizer: Tokenizer, text: str, max_tokens: int) -> Script:
    """A given text, then the end; cut where the tokens run out, but never inside a character."""
    ids = [*tokenizer.encode(text), tokenizer.eos]
    raw = text.encode()
    ends = list(accumulate(len(tokenizer.symbol(token)) for token in ids[:-1]))
    starts = [at for at, byte in enumerate(raw) if byte & 0xC0 != 0x80] + [len(raw)]
    ends = [starts[max(0, bisect_left(starts, end + 1) - 1)] for end in ends] + [len(raw)]
    if len(ids) <= max_tokens:
        return Script(ids, raw, "stop", ends=ends)
    return Script(ids[:max_tokens], raw[: ends[max_tokens - 1]], "length", ends=ends)


def _first_token(ids: list[int], wish: Wish) -> int | None:
    if not wish.stop_token_ids:
        return None
    return next((at for at, token in enumerate(ids) if token in wish.stop_token_ids and at >= wish.min_tokens), None)


def _first_string(text: str, wish: Wish) -> tuple[int, str] | None:
    """Where the stop string that is complete first begins, and which; none that ends within ``min_tokens``."""
    found: list[tuple[int, str]] = []
    for string in wish.stop:
        at = text.find(string, max(0, wish.min_tokens * PIECE - len(string) + 1))
        if string and at != -1:
            found.append((at, string))
    return min(found, key=lambda match: match[0] + len(match[1]), default=None)

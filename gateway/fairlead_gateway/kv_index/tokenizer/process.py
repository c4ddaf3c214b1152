"""The tokenizing process: replies to its parent's queries with the tokens of texts.

    python -m fairlead_gateway.kv_index.tokenizer.process

It serves one query after the other. It opens no socket, contacts no hub and stores no text. The
operating system limits its memory, since a tokenizer's file decides how much is used. It writes no
core dump, which would contain prompts. On an error that it cannot handle it exits, and the client
starts another one.

A tokenizer with a cache: of a text whose prefix is known, only the rest is tokenized.

A turn of a conversation repeats all turns before it, so most of its text has known tokens. But the
tokens of a text are not those of its parts, since pieces merge across any cut. Tokenizers
synchronize again, however. From a start within a text, the first few tokens differ. After them come
the tokens of the whole text. So the text is tokenized from a token end `BACKTRACK_CHARACTERS`
before the end of the known part. The result is compared with the known tokens:

    known     … | tokens of the known part ....................... | end of the known part
    new                    | tokens from the cut on ............................................. |
                                 | ← same pieces, same ends → | MARGIN |
                                 ^ here the two are joined

They are joined at the start of the longest run of equal tokens that ends `MARGIN_CHARACTERS` before
the end of the known part. The text that follows may change the last tokens (a pre-tokenizer's look
ahead, the first half of a special token). The run has to cover `MIN_AGREED_CHARACTERS`, else the
text is tokenized whole. That is no proof for every tokenizer. So one of `AUDIT_INTERVAL` joined
texts is tokenized whole as well, and a single difference ends joining for this tokenizer.

Memory: for each text, its tokens (4 bytes), their ends (4 bytes) and a hash of each
`BLOCK_CHARACTERS` characters, not the text. Beyond `max_tokens`, the least recently used texts are
dropped.

Source: llm-d's tokenization prefix store, a cache from text prefixes to tokens. It stores the whole
tokens of each block of text and counts those near its end as unknown. Here the end is tokenized and
the join is checked.
"""

import os
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import msgspec

from fairlead.distribution import missing_package_message
from fairlead.runtime import process_tuning
from fairlead_gateway.ipc.child_process import serve_parent
from fairlead_gateway.kv_index.tokenizer.messages import TokenizeReply, TokenizeRequest

BLOCK_CHARACTERS: Final = 1_024
BACKTRACK_CHARACTERS: Final = 768
MARGIN_CHARACTERS: Final = 128
MIN_AGREED_CHARACTERS: Final = 256
AUDIT_INTERVAL: Final = 64

Encode = Callable[[str], tuple[Sequence[int], Sequence[int]]]
"""Returns the tokens of a text without special ones at its ends, and their ends in characters."""


@dataclass(frozen=True, slots=True)
class _KnownText:
    """A text that was tokenized: the hashes of its blocks, its tokens, and their ends."""

    digests: tuple[bytes, ...]
    tokens: "array[int]"
    ends: "array[int]"


class IncrementalTokenizer:
    """The incremental tokenizer of one file; its cache has at most `max_tokens` tokens."""

    def __init__(self, encode: Encode, *, max_tokens: int) -> None:
        self._encode = encode
        self._max_tokens = max_tokens
        self._texts: OrderedDict[int, _KnownText] = OrderedDict()
        self._blocks: dict[bytes, int] = {}
        self._next = 0
        self.kept_tokens = 0
        self.joined_count = 0
        self.whole_count = 0
        self.mismatch_count = 0

    def tokenize(self, text: str) -> "array[int]":
        """Returns the text's tokens, without special ones at its ends."""
        digests = _digests(text)
        result = self._tokenize_after_known(text, digests) if not self.mismatch_count else None
        if result is None:
            self.whole_count += 1
            result = self._tokenize_whole(text)
        else:
            self.joined_count += 1
            if self.joined_count % AUDIT_INTERVAL == 1:
                result = self._verify_against_full(text, result)
        self._remember(digests, *result)
        return result[0]

    def _tokenize_whole(self, text: str) -> "tuple[array[int], array[int]]":
        tokens, ends = self._encode(text)
        return array("I", tokens), array("I", ends)

    def _verify_against_full(
        self, text: str, joined: "tuple[array[int], array[int]]"
    ) -> "tuple[array[int], array[int]]":
        whole = self._tokenize_whole(text)
        if whole[0] != joined[0]:
            self.mismatch_count += 1
            self._texts.clear()
            self._blocks.clear()
            self.kept_tokens = 0
        return whole

    def _tokenize_after_known(self, text: str, digests: Sequence[bytes]) -> "tuple[array[int], array[int]] | None":
        """Returns tokens and ends; None if no prefix is known, or the join fails."""
        shared, number = 0, -1
        for count, digest in enumerate(digests, 1):
            at = self._blocks.get(digest)
            if at is None:
                break
            shared, number = count * BLOCK_CHARACTERS, at
        if number < 0:
            return None
        known = self._texts[number]
        self._texts.move_to_end(number)
        return join_tokens(known.tokens, known.ends, shared, text, self._encode)

    def _remember(self, digests: Sequence[bytes], tokens: "array[int]", ends: "array[int]") -> None:
        """Keeps the tokens of a text under the digests of its blocks; the oldest text goes first.

        Nothing is kept once a remembered text gave other tokens than the tokenizer.
        """
        if self.mismatch_count or not digests or len(tokens) > self._max_tokens:
            return
        last = self._blocks.get(digests[-1])
        if last is not None and len(self._texts[last].tokens) >= len(tokens):
            return  # a text that is at least as long is known
        number, self._next = self._next, self._next + 1
        self._texts[number] = _KnownText(tuple(digests), tokens, ends)
        self._blocks.update(dict.fromkeys(digests, number))
        self.kept_tokens += len(tokens)
        while self.kept_tokens > self._max_tokens:
            oldest, dropped = self._texts.popitem(last=False)
            self.kept_tokens -= len(dropped.tokens)
            for digest in dropped.digests:
                if self._blocks.get(digest) == oldest:
                    del self._blocks[digest]


def join_tokens(
    tokens: Sequence[int], ends: Sequence[int], shared: int, text: str, encode: Encode
) -> "tuple[array[int], array[int]] | None":
    """Returns tokens and ends of a text; None if the tokens from the cut on do not synchronize.

    - tokens, ends: those of a known text.
    - shared: the number of characters from the start that are the same in both texts.
    """
    last = shared - MARGIN_CHARACTERS
    cut_at = _count_up_to(ends, shared - BACKTRACK_CHARACTERS)
    if not cut_at:
        return None
    cut = ends[cut_at - 1]
    new, places = encode(text[cut:])
    left, right = _count_up_to(ends, last), _count_up_to(places, last - cut)
    begin = ends[left - 1] if left else 0
    while left > cut_at and right and tokens[left - 1] == new[right - 1] and ends[left - 1] == places[right - 1] + cut:
        left -= 1
        right -= 1
    if begin - ends[left - 1] < MIN_AGREED_CHARACTERS:
        return None
    return (
        array("I", [*tokens[:left], *new[right:]]),
        array("I", [*ends[:left], *(end + cut for end in places[right:])]),
    )


def _count_up_to(ends: Sequence[int], place: int) -> int:
    """Returns how many of the ascending `ends` are at or before the position `place`."""
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high) >> 1
        if ends[middle] <= place:
            low = middle + 1
        else:
            high = middle
    return low


def _digests(text: str) -> list[bytes]:
    """Returns a chained hash for each whole block of characters from the start."""
    digests: list[bytes] = []
    parent = b""
    for start in range(0, len(text) - BLOCK_CHARACTERS + 1, BLOCK_CHARACTERS):
        piece = text[start : start + BLOCK_CHARACTERS].encode("utf-8", "surrogatepass")
        parent = blake2b(parent + piece, digest_size=16).digest()
        digests.append(parent)
    return digests


TOKENIZING_FILE_BYTES: Final = 64 * 1024 * 1024
"""Limit: a tokenizer.json; the large ones have some 20 MB."""
TOKENIZING_MODELS: Final = 8
"""Limit: tokenizers loaded at the same time, up to some 200 MB each; the oldest go."""
TOKENIZING_CACHED_TOKENS: Final = 1_048_576
"""Limit: tokens of the last texts of one tokenizer, 8 bytes each: a known prefix costs less."""
TOKENIZING_MEMORY_BYTES: Final = 3 * 1024 * 1024 * 1024
"""Limit: address space of the tokenizer process; beyond it crashes and is restarted."""

_PROBE_TEXT: Final = "a"
_MISMATCH_WARNING: Final = (
    "the tokens of a known prefix differed from those of the whole text; every text is now tokenized whole"
)


class UnusableTokenizer(Exception):
    """Raised when a file is no usable tokenizer; the message says why, without text of a prompt."""


@dataclass(slots=True)
class _LoadedTokenizer:
    stamp: tuple[int, int, int]
    tokenizer: IncrementalTokenizer
    prefix_tokens: Sequence[int]
    suffix_tokens: Sequence[int]


class TokenizerCache:
    """The tokenizers that were used last, each loaded from its file."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[str, _LoadedTokenizer] = OrderedDict()

    def tokenize(self, request: TokenizeRequest) -> TokenizeReply:
        """Returns the reply to a query: the tokens of its text, or the problem."""
        try:
            text = msgspec.json.decode(request.text, type=str)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return TokenizeReply(request.number, problem="the prompt is not text")
        try:
            loaded = self._load_cached(request.path)
        except UnusableTokenizer as error:
            return TokenizeReply(request.number, problem=str(error))
        tokens = loaded.tokenizer.tokenize(text)
        if request.special:
            tokens = type(tokens)("I", [*loaded.prefix_tokens, *tokens, *loaded.suffix_tokens])
        return TokenizeReply(
            request.number, tokens.tobytes(), note=_MISMATCH_WARNING if loaded.tokenizer.mismatch_count else ""
        )

    def _load_cached(self, path: str) -> _LoadedTokenizer:
        """Returns the tokenizer, loaded again if its file changed. Raises UnusableTokenizer."""
        try:
            stat = os.stat(path)
        except OSError as error:
            raise UnusableTokenizer(error.strerror or "the file cannot be read") from None
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        known = self._loaded.get(path)
        if known is None or known.stamp != stamp:
            if stat.st_size > TOKENIZING_FILE_BYTES:
                raise UnusableTokenizer(f"the file is larger than {TOKENIZING_FILE_BYTES} bytes")
            known = self._loaded[path] = _load(path, stamp)
        self._loaded.move_to_end(path)
        while len(self._loaded) > TOKENIZING_MODELS:
            self._loaded.popitem(last=False)
        return known


def _load(path: str, stamp: tuple[int, int, int]) -> _LoadedTokenizer:
    """Loads a tokenizer from its file. Raises UnusableTokenizer."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UnusableTokenizer(missing_package_message("tokenizers")) from None
    try:
        tokenizer = Tokenizer.from_file(path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        plain, whole = tokenizer.encode(_PROBE_TEXT, add_special_tokens=False).ids, tokenizer.encode(_PROBE_TEXT).ids
    except Exception as error:  # noqa: BLE001 - the library raises Exception itself for whatever is wrong with a file
        raise UnusableTokenizer(f"the file is not a tokenizer: {type(error).__name__}") from None

    def encode(text: str) -> tuple[Sequence[int], Sequence[int]]:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [end for _, end in encoding.offsets]

    at = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), None)
    if at is None or not plain:
        raise UnusableTokenizer("the tokenizer's special tokens are not at the start and the end of a text")
    texts = IncrementalTokenizer(encode, max_tokens=TOKENIZING_CACHED_TOKENS)
    return _LoadedTokenizer(stamp, texts, whole[:at], whole[at + len(plain) :])


if __name__ == "__main__":
    process_tuning.limit_memory(TOKENIZING_MEMORY_BYTES)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # no threads
    os.environ["HF_HUB_OFFLINE"] = "1"  # no downloads
    serve_parent(TokenizeRequest, TokenizerCache().tokenize)

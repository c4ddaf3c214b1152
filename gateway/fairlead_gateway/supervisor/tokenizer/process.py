"""The tokenizing process: reads queries from its standard input and writes tokens to its output.

    python -m fairlead_gateway.supervisor.tokenizer.process

It serves one query after the other. It opens no socket, contacts no hub and stores no text. The
operating system limits its memory, since a tokenizer's file decides how much is used. It writes no
core dump, which would contain prompts. On an error that it cannot handle it exits, and the client
starts another one.
"""

import os
import resource
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

import msgspec

from fairlead.distribution import missing_package_message
from fairlead.limits import Limits
from fairlead_gateway.supervisor.tokenizer.incremental_tokenizer import IncrementalTokenizer
from fairlead_gateway.supervisor.tokenizer.protocol import LENGTH_BYTES, TokenizeReply, TokenizeRequest, encode_frame

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


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Replies to queries until the input ends."""
    tokenizers = TokenizerCache()
    while True:
        head = requests.read(LENGTH_BYTES)
        if len(head) < LENGTH_BYTES:
            return
        request = msgspec.msgpack.decode(requests.read(int.from_bytes(head, "big")), type=TokenizeRequest)
        replies.write(encode_frame(tokenizers.tokenize(request)))
        replies.flush()


def _limit_resources() -> None:
    """Forbids core dumps, threads and downloads from a hub; on Linux, limits the memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    max_bytes = TOKENIZING_MEMORY_BYTES
    if sys.platform == "linux":  # macOS accepts the limit and does not enforce it
        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"


if __name__ == "__main__":
    _limits = Limits()
    _limit_resources()
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(0)

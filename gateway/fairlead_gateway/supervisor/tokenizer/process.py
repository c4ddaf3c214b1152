"""``python -m fairlead_gateway.supervisor.tokenizer.process``: answers questions on its standard input with tokens
on its standard output.

It does one question after another, and nothing that is not in the question: it opens no socket, asks no hub, keeps no text. What it
may use of memory is limited by the operating system, since a file of a tokenizer decides what is made of it, and it writes no core
dump, which would hold prompts. When it meets what it cannot bear it dies, and who asks starts another.
"""

import os
import resource
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

import msgspec

from fairlead.limits import Limits
from fairlead_gateway.supervisor.tokenizer.incremental_tokenizer import IncrementalTokenizer
from fairlead_gateway.supervisor.tokenizer.protocol import LENGTH_BYTES, TokenizeReply, TokenizeRequest, encode_frame

_PROBE_TEXT: Final = "a"
_MISMATCH_WARNING: Final = (
    "tokens of the known beginning of a text were not those of the whole; every text is tokenized whole"
)


class UnusableTokenizer(Exception):
    """Raised when a file does not say how to tokenize; the message says why, and never holds text of a prompt."""


@dataclass(slots=True)
class _LoadedTokenizer:
    stamp: tuple[int, int, int]
    tokenizer: IncrementalTokenizer
    prefix_tokens: Sequence[int]
    suffix_tokens: Sequence[int]


class TokenizerCache:
    """Those that were used last, each from its file."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._loaded: OrderedDict[str, _LoadedTokenizer] = OrderedDict()

    def tokenize(self, request: TokenizeRequest) -> TokenizeReply:
        """The tokens of a question's text, or why there are none."""
        try:
            text = msgspec.json.decode(request.text, type=str)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return TokenizeReply(request.number, problem="the prompt is no text")
        try:
            found = self._load_cached(request.path)
        except UnusableTokenizer as error:
            return TokenizeReply(request.number, problem=str(error))
        tokens = found.tokenizer.tokenize(text)
        if request.special:
            tokens = type(tokens)("I", [*found.prefix_tokens, *tokens, *found.suffix_tokens])
        return TokenizeReply(
            request.number, tokens.tobytes(), note=_MISMATCH_WARNING if found.tokenizer.mismatch_count else ""
        )

    def _load_cached(self, path: str) -> _LoadedTokenizer:
        """Raises Unusable."""
        try:
            about = os.stat(path)
        except OSError as error:
            raise UnusableTokenizer(error.strerror or "it cannot be read") from None
        stamp = (about.st_ino, about.st_mtime_ns, about.st_size)
        known = self._loaded.get(path)
        if known is None or known.stamp != stamp:
            if about.st_size > self._limits.tokenizing_file_bytes:
                raise UnusableTokenizer(f"the file is larger than {self._limits.tokenizing_file_bytes} bytes")
            known = self._loaded[path] = _load(path, stamp, self._limits)
        self._loaded.move_to_end(path)
        while len(self._loaded) > self._limits.tokenizing_models:
            self._loaded.popitem(last=False)
        return known


def _load(path: str, stamp: tuple[int, int, int], limits: Limits) -> _LoadedTokenizer:
    """Raises Unusable."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UnusableTokenizer("the package tokenizers is not installed (extra `tokenize`)") from None
    try:
        made = Tokenizer.from_file(path)
        made.no_truncation()
        made.no_padding()
        plain, whole = made.encode(_PROBE_TEXT, add_special_tokens=False).ids, made.encode(_PROBE_TEXT).ids
    except Exception as error:  # noqa: BLE001 - the library raises Exception itself for whatever is wrong with a file
        raise UnusableTokenizer(f"the file is no tokenizer: {type(error).__name__}") from None

    def encode(text: str) -> tuple[Sequence[int], Sequence[int]]:
        found = made.encode(text, add_special_tokens=False)
        return found.ids, [end for _, end in found.offsets]

    at = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), None)
    if at is None or not plain:
        raise UnusableTokenizer("its special tokens do not stand before and behind a text")
    texts = IncrementalTokenizer(encode, max_tokens=limits.tokenizing_cached_tokens)
    return _LoadedTokenizer(stamp, texts, whole[:at], whole[at + len(plain) :])


def serve(requests: BinaryIO, replies: BinaryIO, limits: Limits) -> None:
    """Answer until the questions end."""
    tokenizers = TokenizerCache(limits)
    while True:
        head = requests.read(LENGTH_BYTES)
        if len(head) < LENGTH_BYTES:
            return
        question = msgspec.msgpack.decode(requests.read(int.from_bytes(head, "big")), type=TokenizeRequest)
        replies.write(encode_frame(tokenizers.tokenize(question)))
        replies.flush()


def _limit_resources(limits: Limits) -> None:
    """No core dumps, no more memory than it may have, no threads beside this one, no hub."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = limits.tokenizing_memory_bytes
    if sys.platform == "linux":  # macOS takes the number and does not keep to it
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"


if __name__ == "__main__":
    _limits = Limits()
    _limit_resources(_limits)
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer, _limits)
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(0)

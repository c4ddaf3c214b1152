"""A stream that broke or moves: what the client has of it, and how another engine continues it."""

from abc import abstractmethod
from collections.abc import Generator, Iterator
from typing import Final

from fairlead.engines.facts import kinds_with
from fairlead_gateway.dialects.schemas import CommonFields
from fairlead_gateway.upstream.event_fields import decode_object
from fairlead_gateway.upstream.stream_record import StreamRecord
from fairlead_gateway.upstream.usage import Usage

Query = tuple[str, bytes]
"""Path and body of a request to an engine. Without a body, it is a GET."""
Queries = Generator[Query, bytes, str]
"""Queries, whose answers are sent in; returns why the engine cannot continue, or nothing."""
TOKEN_ENGINES: Final = kinds_with(lambda facts: facts.sends_token_ids)
"""The engines that send token ids on request, and read them."""
CONTINUED_AT: Final = "fairlead_continued_at"
PROGRESS_TOKENS: Final = 8
MAX_BREAKS: Final = 3
"""Limit: engines that may end on one stream, if each has generated `PROGRESS_TOKENS` before."""
MESSAGES_STUB: Final = b'[{"role":"user","content":"-"}]'
"""In place of messages, whose rendering is replaced by token ids."""
_LIMITS: Final = ("max_tokens", "max_completion_tokens")
_MAX_SEED: Final = (1 << 63) - 1


class ContinuedStream:
    """A stream of which enough is kept that another engine can continue it.

    continuations: how often another instance has continued it; `moves` of them were planned.
    continued_at: how many tokens the client had when the latest instance took over.
    events: those of the instances before the present one.
    needs_task: a task relays the stream, since its request is kept until its end.

    Why a base class and not a Protocol: compiled, its methods are called directly.
    """

    def __init__(self) -> None:
        self.continuations = self.continued_at = self.events = self.moves = 0
        self.needs_task = False

    @property
    def reader(self) -> StreamRecord | None:
        """The reader of the next engine's events; None if the stream reads them itself."""
        return None

    @property
    @abstractmethod
    def generated(self) -> int:
        """The number of tokens that the client has of the answer."""

    @property
    def prompt_tokens(self) -> int:
        """The number of tokens of the prompt; 0 if that is not known."""
        return 0

    @property
    def earlier(self) -> int:
        """The number of the answer's tokens that engines before the present one have generated."""
        return self.continued_at

    @property
    def computed(self) -> int:
        """The number of the answer's tokens by now, with those that are held."""
        return self.generated

    @property
    @abstractmethod
    def is_whole(self) -> bool:
        """Whether nothing is left to generate."""

    @property
    def is_replayed(self) -> bool:
        return False

    @property
    def may_move(self) -> bool:
        return not self.is_replayed

    @property
    def has_progressed(self) -> bool:
        """Whether the stream may go on although two engines have ended on its request.

        Each has then generated tokens before. A request that ends engines does so at once.
        """
        here = self.generated - self.earlier
        return here >= PROGRESS_TOKENS and self.continuations - self.moves < MAX_BREAKS

    @property
    def failure(self) -> bytes:
        """The error event of an engine that the client does not have; empty without one."""
        return b""

    def next_number(self, number: int) -> int:
        return number

    def on_break(self, usage: Usage | None) -> None:
        """Receives the token counts of an engine that has ended."""

    def parse_slices(self) -> Iterator[bool]:
        """Parses what is kept, in slices; yields False and ends if it cannot be continued.

        By default, nothing has to be parsed.
        """
        yield from ()

    @abstractmethod
    def refusal(self) -> str:
        """Returns why no engine can continue the stream, in one word; empty if one can."""

    def queries(self, engine: str) -> Queries:
        """Queries an instance of a kind for what it needs to continue the stream.

        By default, it needs its body alone.
        """
        yield from ()
        return ""

    @abstractmethod
    def next_body(self) -> bytes:
        """Returns the body for another engine. The stream must not be whole."""

    def read_problem(self, usage: Usage | None) -> str:
        """Returns why the first events of the next engine do not continue the stream; empty if they
        do.
        """
        return ""

    @abstractmethod
    def splice(self, events: list[bytes]) -> list[bytes]:
        """Returns another engine's events as part of the stream that the client has."""

    @abstractmethod
    def usage(self, reported: Usage | None) -> Usage | None:
        """Returns the usage of the whole answer from that of the last engine."""

    def closing(self, *, with_usage: bool) -> list[bytes]:
        """Returns the events that a stream lacks whose tokens are all there; empty if its usage is
        not known.

        with_usage: the client has asked for the usage.
        """
        return []

    @abstractmethod
    def release(self) -> None:
        """Drops what is kept. May be called twice."""


def limits_left(fields: CommonFields, generated: int) -> dict[str, int]:
    limits = ((name, getattr(fields, name, None)) for name in _LIMITS)
    return {name: limit - generated for name, limit in limits if limit is not None}


def is_used_up(left_by_name: dict[str, int]) -> bool:
    return any(left <= 0 for left in left_by_name.values())


def next_seed(seed: int, generated: int) -> bytes:
    """Returns the seed of an engine that goes on behind some tokens, as JSON text.

    Why another one: an engine would draw the tokens of the beginning again.
    """
    return b"%d" % ((seed + generated) & _MAX_SEED)


def decoded_text(body: bytes) -> str:
    """Returns the text in an engine's answer to `/detokenize`; empty if there is none."""
    text = (decode_object(body) or {}).get("prompt")
    return text if isinstance(text, str) else ""

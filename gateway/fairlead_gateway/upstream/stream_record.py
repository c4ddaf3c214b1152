"""Records of streams while they are relayed, from which another engine can continue them.

Why base classes and not Protocols: compiled, their methods are called directly.
"""

from abc import abstractmethod
from typing import Final

SHORT_BYTES: Final = 4_096
"""The part of an event or a request that a stream keeps counts as memory if it is longer."""


class StreamRecord:
    """The record of one stream.

    problem: why the stream cannot be continued from it, in one word; empty if it can.
    """

    __slots__ = ("problem",)
    problem: str

    @abstractmethod
    def release(self) -> None:
        """Drops all. May be called twice."""


class TokenTap(StreamRecord):
    """The reader of the token ids of one stream, which it takes out of the events.

    prompt_tokens: of the prompt; 0 until the first event has come.
    earlier: how many of the answer's tokens engines before this one have generated.
    """

    __slots__ = ("earlier", "prompt_tokens")
    prompt_tokens: int
    earlier: int

    @property
    @abstractmethod
    def generated(self) -> int:
        """The number of tokens that the client has of the answer."""

    @abstractmethod
    def prompt_ids(self, max_count: int) -> bytes:
        """Returns the ids of the prompt, four bytes each; nothing if they are not kept, or more."""

    @abstractmethod
    def take(self, events: bytes) -> bytes:
        """Returns whole events without their token ids, or comments in place of held ones."""

    @abstractmethod
    def take_text(self, event: bytes) -> bytes | None:
        """Like `take`, for an event that differs in text and ids alone from the remembered one.

        Returns None for each other event, and takes nothing then. Most events of a stream are such.
        """

    @abstractmethod
    def remember_frame(self, head: bytes, tail: bytes) -> None:
        """Remembers the bytes around the text of an event that has passed, for `take_text`."""

    @abstractmethod
    def usage_event(self, generated: int) -> bytes:
        """Returns the event with the counts of the answer, for an engine that has not sent it."""

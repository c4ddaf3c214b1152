"""The stored responses of one engine: what vLLM has with ``VLLM_ENABLE_RESPONSES_API_STORE=1``, but
bounded. A response that was dropped is unknown, as after a restart.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from fairlead_sim.engine.chat_template import turn_texts
from fairlead_sim.http.connection import EVENT_STREAM_TYPE, ResponseWriter
from fairlead_sim.http.errors import ApiError

SIM_STORED_RESPONSES: Final = 1_000
"""Limit: stored responses of one simulated engine; the oldest is dropped."""
SIM_STORED_RESPONSE_BYTES: Final = 64 * 1024 * 1024
"""Limit: bytes of the conversations and outputs that one simulated engine stores."""


class ResponseRefused(ApiError):
    """Raised for a request that the store cannot serve; 404 for an unknown id."""

    kind = "invalid_request_error"

    def __init__(self, message: str, param: str, status: int = 400) -> None:
        super().__init__(message, param=param)
        self.status = status


class BackgroundWriter(ResponseWriter):
    """The writer of a response without a client; only its begin may fail."""

    has_begun = False

    def __init__(self) -> None:
        super().__init__(None, "", False)

    def fail(self, problem: ApiError) -> None:
        if not self.has_begun:
            raise problem


@dataclass(slots=True)
class StoredResponse:
    """A stored response.

    - turns: the conversation before the output.
    - queued: the response object before the first token.
    - store: where it is kept; None for a response that is not stored.
    - writer: of a response in the background.
    - events: of a stream in the background, one chunk each; None without one.
    """

    turns: list[dict[str, Any]]
    queued: dict[str, Any]
    store: "ResponseStore | None"
    writer: BackgroundWriter | None = None
    events: list[bytes] | None = None
    last_event: bytes | None = None
    body: dict[str, Any] = field(init=False)
    _followers: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.body = self.queued

    @property
    def size(self) -> int:
        turns = [*self.turns, *self.output_turns()]
        return sum(len(text.encode()) for _, text in turn_texts(turns, ()))

    def output_turns(self) -> list[dict[str, Any]]:
        items = [item for item in self.body["output"] if item["type"] == "message"]
        return [{"role": "assistant", "content": part["text"]} for item in items for part in item["content"]]

    def keep(self, body: dict[str, Any]) -> None:
        """Stores the finished response, unless it was cancelled."""
        if self.store is not None and self.body["status"] != "cancelled":
            self.body = body
            self.store.put(self)

    def add_event(self, chunk: bytes, *, is_last: bool) -> None:
        if self.events is not None:
            self.events.append(chunk)
            self.last_event = chunk if is_last else None
            for follower in list(self._followers):
                follower()

    def follow(self, writer: ResponseWriter, position: int) -> None:
        """Sends the events from a position on. Without a last one the stream stays open, as in
        vLLM. A stream without events breaks off.
        """
        writer.start(EVENT_STREAM_TYPE)
        events = self.events
        if events is None:
            writer.break_off()
            return

        def send() -> None:
            nonlocal position
            while not writer.is_done and -len(events) <= position < len(events):
                event = events[position]
                position += 1
                if event is self.last_event:
                    writer.finish(event)
                else:
                    writer.write(event)
            if writer.is_done and send in self._followers:
                self._followers.remove(send)

        self._followers.append(send)
        writer.on_gone = send
        send()

    def cancel(self) -> None:
        """Ends a response in the background. Raises ResponseRefused for any other."""
        if self.body["status"] != "queued":
            raise ResponseRefused("Cannot cancel a synchronous response.", "response_id")
        self.body = self.body | {"status": "cancelled"}
        if self.writer is not None:
            self.writer.client_gone()


class ResponseStore:
    """The stored responses by id, oldest first."""

    def __init__(self) -> None:
        self._responses: dict[str, StoredResponse] = {}
        self._sizes: dict[str, int] = {}

    def find(self, response_id: str) -> StoredResponse:
        """Raises ResponseRefused for an unknown id."""
        if response_id not in self._responses:
            raise ResponseRefused(f"Response with id '{response_id}' not found.", "response_id", 404)
        return self._responses[response_id]

    def put(self, stored: StoredResponse) -> None:
        """Stores a response, or counts it again after a change."""
        response_id = stored.body["id"]
        self._responses[response_id] = stored
        self._sizes[response_id] = stored.size
        while len(self._responses) > SIM_STORED_RESPONSES or sum(self._sizes.values()) > SIM_STORED_RESPONSE_BYTES:
            oldest = next(iter(self._responses))
            del self._responses[oldest], self._sizes[oldest]

"""A receiver of one response that records what a connection reports."""

import asyncio

from fairlead_gateway.upstream.connection import ResponseSink, UpstreamError


class RecordingSink(ResponseSink):
    """Notes when the head and the end of a response have come.

    waits: it bears silence, and lists the causes of errors in `ended`. Otherwise they are raised.
    """

    def __init__(self, *, waits: bool = False) -> None:
        self.head, self.end = asyncio.Event(), asyncio.Event()
        self.ended: list[str] = []
        self.waits = waits

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        self.head.set()

    def on_body(self, chunks: list[bytes], complete: bool) -> None:
        if complete:
            self.end.set()

    def on_error(self, error: UpstreamError) -> None:
        """Records the cause, or raises the error."""
        if not self.waits:
            raise error
        self.ended.append(error.cause)

    def on_silence(self) -> float:
        return 60.0 if self.waits else 0.0

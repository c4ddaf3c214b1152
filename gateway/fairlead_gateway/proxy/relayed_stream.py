"""Streams from their first event to their end: times, and relays without a task.

A stream waits for its engine for minutes. Its task has nothing to do until then, unless the request
has a timeout of its own, or its text is kept for another engine. Else `ResponseRelay` hands the
stream over to a `RelayedStream`, and its task ends. A stream that breaks or moves has a task again,
until another engine has answered.

Why: a waiting task, with its coroutines and futures, takes 2.5 KB of memory for each open stream.
"""

from abc import abstractmethod
from collections.abc import Callable, Coroutine

from fairlead_gateway.continuation.continued_stream import ContinuedStream
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.proxy.attempt import Attempt
from fairlead_gateway.proxy.stream_silence import StreamSilence
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.upstream.response import CLIENT_SILENT, EngineResponse, StreamObserver


class StreamLifecycle:
    """The owner of relayed streams; its methods are called as a stream proceeds.

    Why a base class and not a Protocol: compiled, its methods are called directly.
    """

    @abstractmethod
    def on_relayed(self, stream: "RelayedStream") -> None:
        """Notes a stream that its task has handed over; `stream.cancel` ends it."""

    @abstractmethod
    def on_broken(self, context: RequestContext, work: Coroutine[None, None, bool]) -> None:
        """Notes a relayed stream that left its engine; `work` continues it, and returns whether it
        has ended.
        """

    @abstractmethod
    def on_cancelled(self, context: RequestContext) -> None:
        """Notes the end of a stream whose client has disconnected, or that outlasts the drain."""

    @abstractmethod
    def on_finished(self, context: RequestContext, error: GatewayError | None = None) -> None:
        """Notes the end of a request; sends `error` to the client, if there is one."""

    @abstractmethod
    def on_internal_error(self, context: RequestContext, error: Exception) -> None:
        """Ends a request after a defect of the gateway."""


class GapRecorder(StreamObserver):
    """The observer of a stream that records the times between its chunks.

    silence: checks those that are long.
    """

    __slots__ = ("_attempt", "_model_key", "_silence", "_stream", "_telemetry")

    def __init__(
        self, telemetry: MetricsRecorder, attempt: Attempt, stream: ContinuedStream | None, silence: StreamSilence
    ) -> None:
        self.reports_end = False
        self._telemetry = telemetry
        self._model_key = attempt.context.request.model_key
        self._attempt = attempt
        self._stream = stream
        self._silence = silence

    def on_gap(self, seconds: float, now: float) -> None:
        """Records the seconds between two chunks."""
        self._telemetry.record_inter_token(self._model_key, self._attempt.instance_id, seconds, now)

    def check_silence(self, silent_seconds: float) -> float:
        """Returns after how many more seconds to ask again; 0 if the stream is to leave."""
        return self._silence.check(self._attempt, self._stream, silent_seconds)


class RelayedStream(GapRecorder):
    """One stream without a task."""

    __slots__ = ("_ending", "_engine_response", "_has_ended", "_lifecycle", "context")

    def __init__(
        self,
        attempt: Attempt,
        engine_response: EngineResponse,
        ending: "StreamEnding",
        stream: ContinuedStream | None,
    ) -> None:
        super().__init__(ending.telemetry, attempt, stream, ending.silence)
        self.reports_end = True
        self.context = attempt.context
        self._engine_response = engine_response
        self._lifecycle = ending.lifecycle
        self._ending = ending
        self._has_ended = False

    def on_end(self) -> None:
        """Ends the response: the engine has sent all, or has failed."""
        if self._has_ended:
            return
        attempt, stream = self._attempt, self._stream
        is_complete = False
        try:
            if stream is not None and self._engine_response.error not in (None, CLIENT_SILENT):
                self._stop()
                work = self._ending.continue_stream(attempt, self._engine_response, stream)
                self._lifecycle.on_broken(attempt.context, work)
                return
            try:
                self._stop()
                is_complete = self._ending.end_response(attempt, self._engine_response, stream)
            finally:
                self._finish_attempt(is_complete)
            self._lifecycle.on_finished(attempt.context)
        except Exception as defect:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            self._lifecycle.on_internal_error(attempt.context, defect)

    @property
    def instance_id(self) -> str:
        return self._attempt.instance_id

    def move(self) -> bool:
        """Lets another instance continue the stream if that is worth it; returns whether one
        does.
        """
        attempt, stream = self._attempt, self._stream
        if self._has_ended or stream is None:
            return False
        planned = self._ending.plan_move(attempt, self._engine_response, stream)
        if planned is None:
            return False
        self._stop()
        record_relayed(attempt.context, self._engine_response, stream)
        attempt.context.result.last_at = self._engine_response.last_at
        attempt.abort_unfinished()
        stream.moves += 1
        work = self._ending.continue_stream(attempt, self._engine_response, stream, planned)
        self._lifecycle.on_broken(attempt.context, work)
        return True

    def cancel(self) -> None:
        """Ends the stream at once: its client has disconnected, or the drain is over."""
        if self._has_ended or (not self.context.response.finished and self._engine_response.end_if_whole()):
            return
        self._stop()
        record_relayed(self._attempt.context, self._engine_response, self._stream)
        self._finish_attempt(False)
        self._lifecycle.on_cancelled(self._attempt.context)

    def _stop(self) -> None:
        self._has_ended = True
        self._engine_response.end_relay()
        self._attempt.context.response.on_backpressure = None

    def _finish_attempt(self, is_complete: bool) -> None:
        attempt = self._attempt
        attempt.abort_unfinished()
        attempt.finish(is_complete, attempt.now())
        attempt.context.stop_comments()
        if self._stream is not None:
            self._stream.release()


class StreamEnding:
    """The ways in which a relayed stream ends, or goes on elsewhere.

    plan_move: returns an attempt at the instance that takes over a stream of one that drains; None
        if that is not worth it, or no instance can. Set by the relay.

    Why a base class and not a Protocol: compiled, its methods are called directly.
    """

    def __init__(self, lifecycle: StreamLifecycle, telemetry: MetricsRecorder, silence: StreamSilence) -> None:
        self.lifecycle = lifecycle
        self.telemetry = telemetry
        self.silence = silence
        self.plan_move: Callable[[Attempt, EngineResponse, ContinuedStream], Attempt | None] = _stay

    @abstractmethod
    def end_response(self, attempt: Attempt, engine_response: EngineResponse, stream: ContinuedStream | None) -> bool:
        """Ends the response of a stream that was handed over; returns whether it was complete."""

    @abstractmethod
    def continue_stream(
        self,
        attempt: Attempt,
        engine_response: EngineResponse,
        stream: ContinuedStream,
        planned: Attempt | None = None,
    ) -> Coroutine[None, None, bool]:
        """Continues a stream that left its engine after it was handed over.

        planned: at the instance that takes it over; None if it broke.
        Returns whether its response has ended; else a `RelayedStream` ends it.
        """


def record_relayed(
    context: RequestContext, engine_response: EngineResponse, stream: ContinuedStream | None = None
) -> None:
    """Records what was relayed of a response by now: its events, and the engines' token counts."""
    result, usage = context.result, engine_response.usage
    result.event_count = engine_response.event_count + (0 if stream is None else stream.events)
    number = engine_response.next_sequence_number
    result.next_sequence_number = number if stream is None else stream.next_number(number)
    context.record_usage(usage if stream is None or not stream.continuations else stream.usage(usage))


def _stay(attempt: Attempt, engine_response: EngineResponse, stream: ContinuedStream) -> None:
    return None

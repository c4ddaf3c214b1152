"""One copy of a request: sent to an instance of the shadow, and its answer dropped as it comes.

A copy has one attempt. Its tenant is not charged, no limit counts it, and nothing is retried. Its
choice and outcome are in no log. Router and admission count it as load while it is in flight, since
its engine works for it.
"""

import asyncio
from typing import Final

from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.http.response_writer import ResponseTransport, ResponseWriter
from fairlead_gateway.routing.request import NO_INSTANCES
from fairlead_gateway.telemetry.outcome import ShadowAnswer
from fairlead_gateway.worker.dispatch.router_registry import RoleRouters
from fairlead_gateway.worker.model_selection.request_parser import ModelRequestParser
from fairlead_gateway.worker.openai.model_names import ModelEntry
from fairlead_gateway.worker.proxy.attempt import Attempt, Dispatcher
from fairlead_gateway.worker.proxy.request_recorder import tpot_seconds
from fairlead_gateway.worker.proxy.response_check import check_response
from fairlead_gateway.worker.request_context import RequestContext, RequestResult
from fairlead_gateway.worker.resilience.retry import AttemptFailure
from fairlead_gateway.worker.shadow.spare_capacity import has_room
from fairlead_gateway.worker.upstream.connect_errors import LOCAL_CAUSES
from fairlead_gateway.worker.upstream.connection import UpstreamError
from fairlead_gateway.worker.upstream.connection_pool import ConnectionPool
from fairlead_gateway.worker.upstream.response import StreamObserver

ANSWERED: Final = "answered"
FAILED: Final = "failed"
NO_ROOM: Final = "no-room"
NOT_SERVED: Final = "not-served"
REFUSED: Final = "refused"
SHED: Final = "shed"
COPY_CALLER: Final = CallerKey("\0shadow")
"""The caller of copies. No tenant has this name, so nothing of theirs is counted with it."""


class CopyRefused(Exception):
    """Raised when a copy has no answer that says something about its model.

    outcome: why, in one word of a closed list.
    """

    def __init__(self, outcome: str) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class CopiedRequest:
    """A request and its copy, until both have ended.

    original: key of the model that was asked.
    http_request: the copy of the client's request.
    attempt: of the copy, once it has an instance.
    prefill_seconds: what the copy adds to the backlog of its instance; 0 from its first token on.
    end_reason: why the gateway has ended the copy; empty if it has not.
    answer, original_answer: set when each has ended.
    ended_at: monotonic seconds at which the copy has ended.
    """

    __slots__ = (
        "answer",
        "attempt",
        "end_reason",
        "ended_at",
        "entry",
        "http_request",
        "id",
        "original",
        "original_answer",
        "outcome",
        "prefill_seconds",
        "source",
        "task",
    )

    def __init__(self, source: RequestContext, entry: ModelEntry, now: float) -> None:
        http_request = source.http_request
        self.id = source.id
        self.original: str = source.request.model_key
        self.entry = entry
        self.source: RequestContext | None = source
        self.http_request = HttpRequest(
            http_request.head,
            http_request.body,
            f"{source.id}-copy",
            now,
            http_request.received_wall,
            http_request.caller,
        )
        self.task: asyncio.Task[None] | None = None
        self.attempt: Attempt | None = None
        self.prefill_seconds = 0.0
        self.end_reason = ""
        self.outcome = ""
        self.answer: ShadowAnswer | None = None
        self.original_answer: ShadowAnswer | None = None
        self.ended_at: float | None = None

    def end(self, reason: str) -> None:
        """Ends the copy, if it has not ended."""
        if self.task is not None and not self.task.done():
            self.end_reason = reason
            self.task.cancel()


class _Nowhere(ResponseTransport):
    """The transport of a response that no client gets."""

    def write(self, data: bytes) -> None:
        """Drops the bytes."""

    def on_response_complete(self, keep_alive: bool) -> None:
        """Does nothing."""

    def on_request_released(self) -> None:
        """Does nothing."""

    def abort(self) -> None:
        """Does nothing."""

    def date(self) -> str:
        """Returns nothing: no head is sent."""
        return ""

    def client_address(self) -> str | None:
        """Returns None."""
        return None

    @property
    def is_draining(self) -> bool:
        """False."""
        return False


class _Unobserved(StreamObserver):
    """The observer of a stream whose gaps are not recorded."""

    def on_gap(self, seconds: float) -> None:
        """Does nothing."""


_NOWHERE: Final = _Nowhere()


class CopySender:
    """The stage that sends copies. One object serves all copies of a worker."""

    def __init__(
        self, dispatcher: Dispatcher, routers: RoleRouters, pool: ConnectionPool, parser: ModelRequestParser
    ) -> None:
        self._dispatcher = dispatcher
        self._routers = routers
        self._pool = pool
        self._parser = parser
        self._now = dispatcher.now
        self._max_backlog_seconds: float = dispatcher.runtime.limits.shadow_backlog_seconds

    async def send(self, copied: CopiedRequest) -> ShadowAnswer:
        """Sends a copy and returns what its answer was like.

        Raises CopyRefused, GatewayError if the shadow does not take the request, and
        AttemptFailure or UpstreamError if it does not answer.
        """
        context = self._create_context(copied)
        attempt = copied.attempt = self._place(context)
        is_complete = False
        try:
            self._dispatch(copied, attempt)
            await self._receive(copied, attempt)
            is_complete = context.result.error is None
        finally:
            attempt.abort_unfinished()
            attempt.finish(is_complete, self._now())
        return answer_of(context.result, is_stream=context.request.stream)

    def _create_context(self, copied: CopiedRequest) -> RequestContext:
        http_request, source = copied.http_request, copied.source
        assert source is not None
        decision = source.request.route
        assert decision is not None
        copied.source = None  # the original may take minutes, and has released its body then
        request, routed = self._parser.parse_copy(http_request, decision, copied.entry, http_request.id)
        http_request.body = b""
        context = RequestContext(
            http_request, ResponseWriter(_NOWHERE, None, http_request.id), http_request.id, request, routed
        )
        context.caller = COPY_CALLER
        return context

    def _place(self, context: RequestContext) -> Attempt:
        """Returns the attempt at the instance that routing chooses. Raises CopyRefused if the
        instance has no room.
        """
        key, routed = context.request.model_key, context.route_request
        decision = self._routers.choose(key, routed, self._now(), NO_INSTANCES)
        router = self._routers.router(key)
        instance = None if decision.chosen is None else self._routers.ready_instance(key, decision.chosen)
        endpoint = None if router is None or instance is None else router.endpoint(instance.id)
        if router is None or instance is None or endpoint is None:
            raise CopyRefused(NOT_SERVED)
        load, tokens = router.total_load(endpoint.load), router.prompt_tokens(routed)
        if not has_room(instance, load, self._max_backlog_seconds, tokens=tokens):
            raise CopyRefused(NO_ROOM)
        return self._dispatcher.create_copy(context, instance, decision)

    def _dispatch(self, copied: CopiedRequest, attempt: Attempt) -> None:
        """Counts the copy as load of its instance."""
        router = self._routers.router(attempt.context.request.model_key)
        endpoint = None if router is None else router.endpoint(attempt.instance_id)
        before = 0.0 if endpoint is None else endpoint.load.backlog_seconds
        attempt.on_dispatch(self._now())
        if endpoint is not None:
            copied.prefill_seconds = max(0.0, endpoint.load.backlog_seconds - before)
        attempt.attach_engine_message(attempt.context.request.body)

    async def _receive(self, copied: CopiedRequest, attempt: Attempt) -> None:
        """Sends the message, and drops the response. Raises as `send` does."""
        context, result = attempt.context, attempt.context.result
        engine_response, attempt.error = await attempt.send_until_verdict(self._pool)
        if engine_response.status == 429:
            raise CopyRefused(NO_ROOM)
        check_response(context, engine_response, attempt.error, True)
        attempt.message = []
        context.request.release_body()
        result.status = engine_response.status
        result.first_at, result.last_at = engine_response.first_at, engine_response.last_at
        is_stream = engine_response.is_stream
        if is_stream:
            error = engine_response.scanner.error
            if error is not None:
                result.status, result.error = error.status, FAILED
                return
            attempt.on_first_token(self._now())
            copied.prefill_seconds = 0.0
        if is_stream or not engine_response.is_complete:
            engine_response.relay_to(context.response, _Unobserved())
            result.error = await engine_response.finished
            result.last_at = engine_response.last_at
        if is_stream:
            result.event_count = engine_response.scanner.event_count
            result.record_usage(engine_response.scanner.usage)
        if result.status >= 400:
            result.error = FAILED


def answer_of(result: RequestResult, *, is_stream: bool) -> ShadowAnswer:
    """Returns what an answer was like, with times from its dispatch to the engine."""
    failed = result.status != 200 or result.error is not None
    ttft = tpot = None
    if is_stream and result.first_at is not None and result.dispatched_at is not None:
        ttft = result.first_at - result.dispatched_at
        tpot = tpot_seconds(result, result.output_tokens or result.event_count)
    return ShadowAnswer(failed, ttft, tpot, result.output_tokens)


def failure_outcome(failure: AttemptFailure | UpstreamError) -> str:
    """Returns the outcome of a copy without an answer: an engine or a gateway that is full is no
    failure of the model.
    """
    if isinstance(failure, AttemptFailure):
        return NO_ROOM if failure.is_overload or failure.is_local else FAILED
    return NO_ROOM if failure.cause in LOCAL_CAUSES else FAILED

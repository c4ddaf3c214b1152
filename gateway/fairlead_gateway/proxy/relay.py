"""Relays the response of an attempt to the client, whole or as a stream."""

import asyncio
import re
from functools import partial
from typing import Final

from fairlead_gateway.continuation.continuation import DRAINED, HANDED_OVER, Continuation
from fairlead_gateway.continuation.continued_stream import ContinuedStream
from fairlead_gateway.dialects.chat import ChatRequest
from fairlead_gateway.dialects.error_shape import RESPONSES_ERRORS
from fairlead_gateway.dialects.passed_on import COUNT_TOKENS
from fairlead_gateway.errors import (
    GatewayError,
    error_body,
)
from fairlead_gateway.limits.worker.limit_gate import LimitGate
from fairlead_gateway.openai.model_names import ServedNameRewriter
from fairlead_gateway.openai.response_ids import ResponseIdRewriter, ResponseIds
from fairlead_gateway.proxy.attempt import (
    Attempt,
    AttemptParts,
    external_refusal,
    is_error_object,
    is_external,
    is_unknown_path,
    refusal_body,
)
from fairlead_gateway.proxy.fallbacks import fallback_header
from fairlead_gateway.proxy.relayed_stream import (
    GapRecorder,
    RelayedStream,
    StreamEnding,
    StreamLifecycle,
    record_relayed,
)
from fairlead_gateway.proxy.stream_silence import StreamSilence
from fairlead_gateway.proxy.tool_calls import ToolCallIndexer
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.resilience.worker.retry import MAX_RETRY_AFTER_SECONDS, RetryBudget
from fairlead_gateway.telemetry.decision_log import ENGINE_REFUSED
from fairlead_gateway.tenants.worker.tenant_policy import (
    BodyRewriter,
    CachedTokensFilter,
    shown_headers,
)
from fairlead_gateway.upstream.connection_pool import ConnectionPool
from fairlead_gateway.upstream.request_encoder import (
    JSON_TYPE,
    RouteHeaderCache,
    relayed_headers,
    route_header,
    sanitize_header_value,
    server_timing,
)
from fairlead_gateway.upstream.response import CLIENT_SILENT, EngineResponse
from fairlead_gateway.upstream.stream_comments import SseKeepAlive, StreamTimes

_STREAM_ERROR_TEXTS: Final = {
    "cut": "the engine broke off",
    "timeout": "the engine fell silent",
    "gone": "the engine fell silent and takes no connections",
    "error-event": "the engine reported an error",
    "aborted": "the engine aborted the request",
    "garbage": "the engine's answer cannot be read",
    "replay": "another engine does not repeat it",
    "gateway-full": "the gateway lacks memory for its events",
}
_NOT_COUNTED: Final = partial(
    error_body, "the model's engine does not count tokens", "invalid_request_error", None, code="not_supported"
)
_RESPONSES_ERRORS: Final = RESPONSES_ERRORS
_EVENT_STREAM_HEADERS: Final = "content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
_NO_SNIFFING: Final = "x-content-type-options: nosniff\r\n"
"""The header of answers whose type is the engine's, or missing."""
_NOT_STORED: Final = "x-fairlead-stored: false\r\n"
_DECISION: Final = "x-fairlead-decision: "
_JSON: Final = JSON_TYPE.encode()
_JSON_OR_EVENTS: Final = re.compile(rb"json|text/event-stream", re.IGNORECASE)


class ResponseRelay(StreamEnding):
    """The stage that relays responses, whole or as streams.

    One object serves all requests of a worker.

    lifecycle: takes the streams that need no task.
    """

    def __init__(
        self,
        lifecycle: StreamLifecycle,
        parts: AttemptParts,
        *,
        pool: ConnectionPool,
        retry_budget: RetryBudget,
        limit_gate: LimitGate,
    ) -> None:
        runtime = parts.runtime
        self._now = runtime.now
        self._limits = runtime.limits
        self._stream_times = StreamTimes(runtime)
        super().__init__(lifecycle, parts.recorder.telemetry, StreamSilence(parts, retry_budget))
        self._limit_gate = limit_gate
        self._routers = parts.routers
        self._telemetry = self.telemetry
        self._failures = parts.failures
        self._poison_guard = parts.poison_guard
        self.continuation = Continuation(parts, pool, retry_budget, self._relay_without_task, self.silence)
        self.plan_move = self.continuation.plan_move
        self._route_headers = RouteHeaderCache()
        self._response_ids = ResponseIds(parts.routers.secret)

    def watch_silence(self, context: RequestContext) -> None:
        """Gives a streamed request that waits a head in time, and comments, until it ends."""
        send_head, response = partial(self._send_head, context), context.response
        if context.keep_alive is None:
            context.keep_alive = SseKeepAlive(response, self._stream_times, send_head)
            return
        context.keep_alive.send_head = send_head  # that of the model before
        if response.is_waiting:
            response.last_comment = partial(self._last_comment, context)

    def _send_head(self, context: RequestContext) -> None:
        """Sends the head of a stream whose answer has not begun.

        What serves it comes in the last comment.
        """
        response = context.response
        own = self._own_headers(context, self._now())
        response.start_stream(200, f"{_EVENT_STREAM_HEADERS}{_DECISION}{context.id}\r\n{own}")
        response.is_waiting = True
        response.last_comment = partial(self._last_comment, context)

    def _last_comment(self, context: RequestContext) -> bytes:
        lines = self.response_headers(context, self._now()).encode("latin-1").split(b"\r\n")
        return b"".join([b": %b\n" % line for line in lines if line]) + b"\n"

    async def relay(self, attempt: Attempt) -> bool:
        """Sends the response as it comes; returns whether it was complete.

        Returns False, and sets `is_handed_over` of the request, if the stream needs no task.
        """
        context, engine_response = attempt.context, attempt.engine_response
        assert engine_response is not None
        response, result = context.response, context.result
        result.status = engine_response.status
        result.first_at, result.last_at = engine_response.first_at, engine_response.last_at
        if engine_response.in_band_error is not None:
            self._refuse_stream(context, engine_response)
            return True
        if not engine_response.is_stream and (engine_response.is_complete or engine_response.status >= 400):
            self.relay_buffered(context, engine_response, self._now())
            return True
        rewriter = _body_rewriter(context, engine_response, self._response_ids)
        if rewriter is not None:
            engine_response.rewrite_events = rewriter.rewrite_events
            engine_response.rewrite_chunks = rewriter.rewrite_chunks
        fields = context.request.decoded_fields  # None: a scanned chat, which has no tools
        if engine_response.is_stream and isinstance(fields, ChatRequest) and fields.tools:
            engine_response.rewrite_events = ToolCallIndexer(engine_response.rewrite_events).rewrite_events
        length = None
        if engine_response.is_stream and engine_response.first_at is not None:
            self._record_first_token(attempt, engine_response)
        elif rewriter is None and not engine_response.is_stream:
            value = engine_response.headers.get(b"content-length", b"")
            length = int(value) if value.isdigit() else None
        response.on_backpressure = attempt.set_paused
        if response.is_waiting:
            response.is_waiting = False
        else:
            headers = relayed_headers(_shown_headers(context, engine_response))
            headers += self.response_headers(context, self._now())
            if context.request.is_passthrough:
                headers += _NO_SNIFFING
            response.start_stream(engine_response.status, headers, length=length)
            response.accepts_comments = response.accepts_comments and engine_response.is_stream
        stream = self.continuation.keep(attempt, engine_response) if engine_response.is_stream else None
        if self._hand_over(attempt, engine_response, stream):
            return False
        return self._end(context, engine_response, await self._relay_to_end(attempt, engine_response, stream))

    def end_response(self, attempt: Attempt, engine_response: EngineResponse, stream: ContinuedStream | None) -> bool:
        """Ends the response of a stream that was handed over."""
        cause = engine_response.error
        self._record_end(attempt, engine_response, cause, stream)
        if cause is not None and cause != CLIENT_SILENT:
            self.continuation.note_not_continued(attempt)
        elif cause is None and stream is not None and stream.continuations:
            self._telemetry.record_resumption(attempt.context.request.model_key, "whole")
        return cause is None or self._end(attempt.context, engine_response, cause)

    def _end(self, context: RequestContext, engine_response: EngineResponse, cause: str | None) -> bool:
        """Ends a response that has started; returns whether it was complete."""
        response, result = context.response, context.result
        if cause is None:
            return True
        if cause == CLIENT_SILENT:
            result.client_disconnected = True
            response.abort()
            return False
        result.error = cause
        error = engine_response.in_band_error
        # The request is at fault, as its engine or the gateway says.
        result.is_charged = error is not None and (error.status < 500 or error.is_charged)
        if error is not None and not error.cause and context.request.dialect.grammar is not None:
            response.write_chunks([context.error_event] if context.error_event else [], final=True)  # the engine's own
            return False
        text = _STREAM_ERROR_TEXTS.get(cause, "the engine failed")
        if cause == "cut" and engine_response.is_complete:
            grammar = context.request.dialect.grammar
            last = "its last event" if grammar is None else min(grammar.last).decode()
            text = f"the engine ended the stream without {last}"
        text += "; the answer is incomplete"
        if result.not_continued:
            text += f", and no engine could continue it ({result.not_continued})"
        _end_with_error(context, text, f"stream_{cause.replace('-', '_')}")
        return False

    def relay_buffered(self, context: RequestContext, engine_response: EngineResponse, now: float) -> None:
        """Sends a whole plain response."""
        body, content_type = engine_response.buffered_body, JSON_TYPE
        shown, status = _shown_headers(context, engine_response), engine_response.status
        headers = relayed_headers(shown, exclude=b"content-type")
        headers += self.response_headers(context, now)
        if context.request.is_passthrough:
            headers += _NO_SNIFFING
            if b"content-type" in engine_response.headers:
                content_type = engine_response.headers[b"content-type"].decode("latin-1")
        if status >= 400:
            seconds = engine_response.retry_after(int(MAX_RETRY_AFTER_SECONDS))
            headers += "" if seconds is None else f"retry-after: {seconds}\r\n"
            context.result.error = ENGINE_REFUSED
            if is_external(context):
                content_type, body = JSON_TYPE, external_refusal(status, body, context.http_request.id)
            if context.request.dialect is COUNT_TOKENS and is_unknown_path(status, body):
                status, content_type, body = 501, JSON_TYPE, _NOT_COUNTED(request_id=context.http_request.id)
            if not is_error_object(body):
                content_type, body = JSON_TYPE, refusal_body(status, body, context.http_request.id)
            body = context.request.dialect.errors.body(status, body)
        rewriter = _body_rewriter(context, engine_response, self._response_ids)
        body = body if rewriter is None else rewriter.rewrite(body)
        _send_whole(context, status, headers, body, content_type)

    def response_headers(self, context: RequestContext, now: float) -> str:
        """Returns the headers that say where a request went, why, and how long that took.

        A tenant that is not shown them gets the id of the decision only.
        """
        choice, address = context.choice, context.address
        own = self._own_headers(context, now)
        if not context.policy.shows_placement:
            return f"{_DECISION}{context.id}\r\n{own}"
        if choice is None or address is None:
            route, rule = route_header("gateway"), "none"
        else:
            route, rule = self._route_headers.get(address.id), choice.decision.rule
        received_at, dispatched_at = context.http_request.received_at, context.result.dispatched_at
        queued_seconds = context.result.queued_seconds
        if dispatched_at is None:
            timing = server_timing(now - received_at - queued_seconds, -1.0, queued_seconds)
        else:
            timing = server_timing(dispatched_at - received_at - queued_seconds, now - dispatched_at, queued_seconds)
        if context.request.route is not None:
            own += f"x-fairlead-model: {sanitize_header_value(context.request.model_key)}\r\n"
            own += fallback_header(context.request.route)
        return f"{route}{rule}\r\n{_DECISION}{context.id}\r\nserver-timing: {timing}\r\n{own}"

    def _own_headers(self, context: RequestContext, now: float) -> str:
        """Returns the headers that do not depend on what serves the request."""
        trace = context.trace.response_header if context.trace is not None else ""
        if context.reservation is not None:
            trace += self._limit_gate.headers(context, now)
        if context.request.is_unstored:
            trace += _NOT_STORED
        return trace

    def _refuse_stream(self, context: RequestContext, engine_response: EngineResponse) -> None:
        """Answers with the error that the stream began with, instead of a stream."""
        error, result = engine_response.in_band_error, context.result
        assert error is not None
        result.status, result.error = error.status, ENGINE_REFUSED
        body = error_body(error.message, "invalid_request_error", None, "engine_refused", context.http_request.id)
        if is_external(context):
            body = external_refusal(error.status, body, context.http_request.id)
        body = context.request.dialect.errors.body(error.status, body)
        _send_whole(context, error.status, self.response_headers(context, self._now()), body)

    def _record_first_token(self, attempt: Attempt, engine_response: EngineResponse) -> None:
        context, first_at = attempt.context, engine_response.first_at
        assert first_at is not None
        attempt.on_first_token(self._now())
        key = context.request.model_key
        limit = context.request.model.objectives.ttft_limit_seconds(
            self._routers.prompt_tokens(key, context.route_request)
        )
        ttft_seconds = first_at - context.http_request.received_at
        self._telemetry.record_first_token(key, attempt.instance_id, ttft_seconds, limit)

    def _hand_over(self, attempt: Attempt, engine_response: EngineResponse, stream: ContinuedStream | None) -> bool:
        """Relays a stream without its task, if neither a timeout nor another instance may end it.

        Returns whether it does.
        """
        context = attempt.context
        # Of a client that has disconnected, the task is about to be cancelled.
        if not engine_response.is_stream or context.response.finished or context.deadline is not None:
            return False
        if stream is not None and stream.needs_task:
            return False
        self._release_request(context)
        context.stall_timeout = None
        engine_response.release_head()
        if attempt.connection is not None:
            attempt.connection.release_head(engine_response)
        self._relay_without_task(attempt, engine_response, stream)
        context.is_handed_over = True  # last: after an error before, the task ends the request
        return True

    def _relay_without_task(
        self, attempt: Attempt, engine_response: EngineResponse, stream: ContinuedStream | None
    ) -> None:
        """Relays a stream to its end without a task."""
        context = attempt.context
        context.response.on_backpressure = attempt.set_paused
        relayed = RelayedStream(attempt, engine_response, self, stream)
        engine_response.relay_to(context.response, relayed)
        context.start_comments(engine_response)
        self.lifecycle.on_relayed(relayed)

    def _release_request(self, context: RequestContext) -> None:
        """Releases the body: no attempt follows, and thousands of streams need not keep it."""
        context.fingerprint = context.body_fingerprint(self._poison_guard.fingerprint)
        context.http_request.body = b""
        context.request.release_body()
        context.response.on_request_released()

    async def _relay_to_end(
        self, attempt: Attempt, engine_response: EngineResponse, stream: ContinuedStream | None
    ) -> str | None:
        """Relays the response to its end, and resumes a stream that breaks.

        Returns the cause of a failure, in one word; None if the response is complete.
        """
        context = attempt.context
        if engine_response.is_stream and (stream is None or not stream.needs_task):
            self._release_request(context)
        observer = GapRecorder(self._telemetry, attempt, stream, self.silence)
        engine_response.relay_to(context.response, observer)
        context.start_comments(engine_response)
        try:
            await engine_response.finished
            return await self._continue_if_broken(attempt, engine_response, stream)
        except asyncio.CancelledError:
            if not context.response.finished and engine_response.end_if_whole():
                self._record_end(attempt, engine_response, None)
                return None
            if engine_response.finished.cancelled():  # the client has disconnected
                record_relayed(context, engine_response, stream)
            raise
        finally:
            context.response.on_backpressure = None
            if stream is not None:
                stream.release()

    async def continue_stream(
        self,
        attempt: Attempt,
        engine_response: EngineResponse,
        stream: ContinuedStream,
        planned: Attempt | None = None,
    ) -> bool:
        """Continues a stream that left its engine after it was handed over.

        planned: at the instance that takes it over; None if it broke.
        Returns whether its response has ended; else a `RelayedStream` ends it.
        """
        context = attempt.context
        is_complete = is_handed_over = False
        try:
            if planned is None:
                cause = await self._continue_if_broken(attempt, engine_response, stream)
            else:
                cause = await self.continuation.resume(attempt, stream, DRAINED, planned)
            is_handed_over = cause == HANDED_OVER
            if not is_handed_over:
                is_complete = self._end(context, engine_response, cause)
        finally:
            if not is_handed_over:
                context.stop_comments()
                context.response.on_backpressure = None
                stream.release()
            attempt.abort_unfinished()
            attempt.finish(is_complete, self._now())
        return not is_handed_over

    async def _continue_if_broken(
        self, attempt: Attempt, engine_response: EngineResponse, stream: ContinuedStream | None
    ) -> str | None:
        """Records how a relay ended, and continues it elsewhere if it broke.

        Returns the cause of a failure, in one word; None if the response is complete.
        """
        cause = engine_response.error
        is_final = self._record_end(attempt, engine_response, cause, stream)
        has_broken = cause is not None and cause != CLIENT_SILENT
        if stream is None or (is_final and not (has_broken and stream.has_progressed)):
            if has_broken and engine_response.is_stream:
                self.continuation.note_not_continued(attempt)
            return cause
        if not engine_response.is_complete and attempt.connection is not None:
            attempt.connection.abandon(engine_response)
        return await self.continuation.resume(attempt, stream, cause or "")

    def _record_end(
        self,
        attempt: Attempt,
        engine_response: EngineResponse,
        cause: str | None,
        stream: ContinuedStream | None = None,
    ) -> bool:
        """Records how the relay ended; returns whether the rest must not be resumed."""
        result = attempt.context.result
        result.last_at = engine_response.last_at
        record_relayed(attempt.context, engine_response, stream)
        if cause is None or cause == CLIENT_SILENT:
            return True
        self._failures.on_stream_failed(attempt.context, attempt.instance_id, cause)
        return cause == "cut" and attempt.on_crash()


def _send_whole(context: RequestContext, status: int, headers: str, body: bytes, content_type: str = JSON_TYPE) -> None:
    """Sends a whole response, or its error as the only event of a stream that has its head."""
    response = context.response
    if response.is_waiting:
        response.end_with_error(context.request.dialect.errors.only_event(status, body))
    else:
        response.send(status, headers, body, content_type=content_type)


def end_incomplete(context: RequestContext, error: GatewayError) -> None:
    context.result.error = error.code
    _end_with_error(context, f"{error}; the answer is incomplete", error.code)


def _end_with_error(context: RequestContext, text: str, code: str) -> None:
    """Ends a stream with an error as its last event, in the dialect of its path.

    Anything else is reset, so that it cannot look whole.
    """
    request, response = context.request, context.response
    if request.stream:
        result = context.result
        event = request.dialect.errors.event(
            text,
            code,
            context.http_request.id,
            sequence_number=result.next_sequence_number,
            response_id=result.response_id,
        )
        response.end_with_error(event)
    else:
        response.abort()


def _shown_headers(context: RequestContext, engine_response: EngineResponse) -> dict[bytes, bytes]:
    headers = engine_response.headers
    return headers if context.policy.shows_placement else shown_headers(headers)


def _body_rewriter(
    context: RequestContext, engine_response: EngineResponse, response_ids: ResponseIds
) -> BodyRewriter | None:
    """Returns the rewriter of a response's body; None if it goes to the client as it is."""
    names = _served_name_rewriter(context, engine_response)
    rewriter: BodyRewriter | None = names
    request, address = context.request, context.address
    if address is not None and request.dialect.errors is _RESPONSES_ERRORS and _has_text(engine_response):
        rewriter = ResponseIdRewriter(
            response_ids, address.id, context.caller, request.held, names, context.result.note_response_id
        )
    if context.policy.shows_cached(context.request.entry.rules, context.http_request.head.path):
        return rewriter
    return CachedTokensFilter(rewriter) if _has_text(engine_response) else rewriter


def _served_name_rewriter(context: RequestContext, engine_response: EngineResponse) -> ServedNameRewriter | None:
    """Returns the rewriter that restores the client's model name.

    None if the engine uses that name, or sends no JSON.
    """
    adapter, route, address = context.request.adapter, context.request.route, context.address
    name = None if address is None else address.served_name
    if adapter is not None:
        sent = (None if address is None else address.adapter_model(adapter.name)) or adapter.name
        name = None if context.request.model_name == sent else sent
    elif name is None and route is not None:
        name = context.request.model.name
    if name is None or not _has_text(engine_response):
        return None
    return ServedNameRewriter(name, context.request.model_name if route is None else route.name)


def _has_text(engine_response: EngineResponse) -> bool:
    content_type = engine_response.headers.get(b"content-type", b"")
    if engine_response.is_stream or content_type == _JSON:
        return True
    return _JSON_OR_EVENTS.search(content_type) is not None

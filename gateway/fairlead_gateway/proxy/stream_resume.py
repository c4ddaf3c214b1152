"""Continues streams that broke after their first byte, or that move: another instance generates the
rest.

The text that clients have is parsed for one stream at a time, and in slices.

Why: an engine that ends breaks hundreds of streams at once. To parse 1 MiB of short events takes
0.1 s, and requests of all callers would wait for the sum.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from fairlead_gateway.errors import (
    NoReadyInstance,
)
from fairlead_gateway.proxy.attempt import (
    Attempt,
    Dispatcher,
    is_usage_refused,
)
from fairlead_gateway.proxy.continuation import (
    TOKEN_ENGINES,
    ContinuedStream,
    DetachedStream,
    SentText,
    StreamText,
    StreamTokens,
    decoded_text,
)
from fairlead_gateway.proxy.continued_blocks import StreamBlocks
from fairlead_gateway.proxy.relayed_stream import GapRecorder
from fairlead_gateway.proxy.stream_replay import StreamReplay
from fairlead_gateway.proxy.stream_silence import StreamSilence
from fairlead_gateway.proxy.tool_calls import ToolCallIndexer
from fairlead_gateway.resilience.worker.retry import AttemptFailure, RetryBudget
from fairlead_gateway.telemetry.decision_log import CONTINUATION_RULE
from fairlead_gateway.telemetry.worker.trace_record import ATTEMPT
from fairlead_gateway.tenants.worker.tenant_policy import hide_cached_tokens
from fairlead_gateway.upstream.connection import UpstreamError
from fairlead_gateway.upstream.connection_pool import ConnectionPool, EngineCallFailed, call_engine
from fairlead_gateway.upstream.request_encoder import encode_request
from fairlead_gateway.upstream.response import CLIENT_SILENT, EngineResponse
from fairlead_gateway.upstream.sent_blocks import NOT_TEXT
from fairlead_gateway.upstream.sent_tokens import IDS_NOT_READ
from fairlead_gateway.worker.request_context import RequestContext

MAX_CONTINUATIONS: Final = 8
"""Limit: instances that are asked for the rest of one stream."""
HANDED_OVER: Final = "handed-over"
_MAX_UNCLEAR_TOKENS: Final = 16
NO_INSTANCE: Final = "no-instance"
POISON: Final = "poison"

DRAINED: Final = "drain"
_FREE_CAUSES: Final = ("cut", "gone", DRAINED)
"""The engine went, or the gateway has moved the stream: resuming charges no budget."""


class StreamResume:
    """The stage that resumes broken streams. One object serves all requests of a worker."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        pool: ConnectionPool,
        retry_budget: RetryBudget,
        hand_over: Callable[[Attempt, EngineResponse, DetachedStream | None], None],
        silence: StreamSilence,
    ) -> None:
        self._silence = silence
        self._dispatcher = dispatcher
        self._pool = pool
        self._hand_over = hand_over
        self._telemetry = dispatcher.recorder.telemetry
        self._retry_budget = retry_budget
        self._now = dispatcher.now
        self._routers = dispatcher.routers
        self._failures = dispatcher.failures
        self._parsing = asyncio.Lock()

    def plan_move(self, attempt: Attempt, stream: DetachedStream, why: str) -> Attempt | None:
        """Chooses an instance that takes over a stream of one that drains.

        Returns None if none can, or if the answer is about to end. A replay would generate again
        what the client has, and a text may find no engine that takes it over. Such streams move
        only when their engine ends.
        """
        if not stream.may_move or stream.refusal() or stream.is_whole:
            return None
        return self._choose(attempt, stream, DRAINED, frozenset({attempt.instance_id}), why)

    async def resume(
        self,
        broken: Attempt,
        stream: ContinuedStream,
        cause: str,
        attempt: Attempt | None = None,
    ) -> str | None:
        """Relays the rest of the response from other instances.

        stream: what the client has.
        cause: why the stream of `broken` ended.
        attempt: at the instance that takes it over, if that was chosen before.
        Returns None if the response is complete now, else the cause of the failure.
        `HANDED_OVER`: a `RelayedStream` ends it.
        """
        context, tried = broken.context, frozenset[str]()
        if isinstance(stream, DetachedStream) and broken.engine_response is not None:
            stream.events += broken.engine_response.event_count
            usage = broken.engine_response.usage
            if isinstance(stream, StreamBlocks) and not stream.continuations and usage is not None:
                stream.counted_prompt = usage.prompt_tokens or 0
        key = context.request.model_key
        first_cause, reason, is_planned = cause, "", attempt is not None
        failure = stream.failure if isinstance(stream, DetachedStream) else b""
        while not reason:
            tried |= {broken.instance_id}
            if context.trace is not None:
                context.trace.finish_span(ATTEMPT, cause)
            is_read = not isinstance(stream, StreamText) or await self._parse(stream.sent)
            reason = stream.refusal() if is_read else NOT_TEXT
            if reason:
                break
            if stream.is_whole:
                ended = self._complete(context, stream, cause)
                if ended is None:
                    self._telemetry.record_resumption(key, "whole")
                return ended
            if attempt is None and cause != POISON:
                attempt = self._choose(broken, stream, cause, tried, is_free=is_planned)
                is_planned = False
            if attempt is None:
                reason = POISON if cause == POISON else NO_INSTANCE
                break
            broken.tokens = broken.blocks = None
            broken.finish(False, self._now())
            next_cause = await self._continue(attempt, stream)
            if next_cause is None:
                self._telemetry.record_resumption(key, "whole")
                return None
            if next_cause in (HANDED_OVER, CLIENT_SILENT):
                return next_cause
            broken, cause, attempt = attempt, next_cause, None
            first_cause = cause if first_cause == DRAINED else first_cause
            if len(tried) > MAX_CONTINUATIONS:
                reason = "breaks"
        self._telemetry.record_not_continued(key, reason)
        if len(tried) > 1 or (isinstance(stream, DetachedStream) and stream.continuations):
            self._telemetry.record_resumption(key, "broken")
        if isinstance(stream, DetachedStream):
            context.error_event = failure
        context.result.not_continued = reason
        return first_cause

    async def _continue(self, attempt: Attempt, stream: ContinuedStream) -> str | None:
        """Relays the rest of the response from one instance.

        Returns None if the response is complete now, else why it is not. `HANDED_OVER`: a
        `RelayedStream` ends it.
        """
        context = attempt.context
        attempt.on_dispatch(self._now())
        is_complete = is_handed_over = False
        try:
            if context.request.adapter is not None:
                await attempt.acquire_adapter()
            if isinstance(stream, StreamTokens) and stream.is_unclear:
                await self._settle(attempt, stream)
                if stream.tokens.problem:
                    return stream.tokens.problem
            if isinstance(stream, StreamBlocks):
                if attempt.address.engine not in TOKEN_ENGINES:
                    return "engine"
                stream.problem = await self._find_tokens(attempt, stream)
                if stream.problem:
                    return stream.problem
                if stream.is_whole:
                    return self._complete(context, stream, "cut")
                attempt.blocks = stream.blocks
            attempt.attach_engine_message(stream.next_body())
            tokens = attempt.tokens = stream.tokens if isinstance(stream, StreamTokens) else None
            shows_cached = context.policy.shows_cached(context.request.entry.rules, context.http_request.head.path)
            rewrite = ToolCallIndexer(
                stream.splice if shows_cached else lambda events: [*map(hide_cached_tokens, stream.splice(events))]
            ).rewrite_events
            engine_response, error = await attempt.send_until_verdict(self._pool, rewrite)
            if error is None and is_usage_refused(context, engine_response) and isinstance(stream, StreamText):
                self._without_usage(attempt, stream)
                engine_response, error = await attempt.send_until_verdict(self._pool, rewrite)
            if error is not None:
                self._failures.on_stream_failed(context, attempt.instance_id, error.cause)
                return POISON if error.is_crash and attempt.on_crash() else error.cause
            scanner = engine_response.scanner
            if not engine_response.is_stream or scanner.error is not None or scanner.is_aborted:
                return "refused"
            if tokens is not None and tokens.problem:
                return tokens.problem
            if isinstance(stream, StreamBlocks) and not stream.has_read(scanner.usage):
                stream.problem = IDS_NOT_READ
                return stream.problem
            self._failures.outlier_detector.on_success(attempt.instance_id, self._now(), context.caller)
            if isinstance(stream, DetachedStream) and context.deadline is None:
                self._note_first_token(attempt, stream)
                stream.continuations += 1
                is_handed_over = True
                self._hand_over(attempt, engine_response, stream)
                return HANDED_OVER
            cause = await self._relay(attempt, engine_response, stream)
            is_complete = cause is None
            if cause == "cut" and attempt.on_crash():
                has_progressed = isinstance(stream, DetachedStream) and stream.has_progressed
                return cause if has_progressed else POISON
            return cause
        except UpstreamError as error:
            self._failures.on_stream_failed(context, attempt.instance_id, error.cause)
            return error.cause
        except (AttemptFailure, EngineCallFailed) as failure:
            return failure.cause
        finally:
            if not is_handed_over:
                attempt.abort_unfinished()
                attempt.tokens = attempt.blocks = None  # the stream may go on with them
                attempt.finish(is_complete, self._now())

    async def _settle(self, attempt: Attempt, stream: StreamTokens) -> None:
        """Asks the instance to which of its last tokens the client's text belongs.

        Raises EngineCallFailed.
        """
        tokens, text = stream.tokens, stream.last_text()
        for end in range(tokens.shown, max(tokens.last_at, tokens.shown - _MAX_UNCLEAR_TOKENS), -1):
            answer = await self._query(attempt, "/detokenize", stream.tokens_before(end))
            if text and decoded_text(answer).endswith(text):
                tokens.settle(end)
                return
        tokens.settle(None)

    async def _find_tokens(self, attempt: Attempt, stream: StreamBlocks) -> str:
        """Queries the tokens that the stream needs; returns why the instance cannot continue it.

        Raises EngineCallFailed.
        """
        queries = stream.queries()
        try:
            path, body = next(queries)
            while True:
                body = attempt.named_body(body) if path.startswith("/v1/") else body
                path, body = queries.send(await self._query(attempt, path, body))
        except StopIteration as end:
            problem: str = end.value
            return problem

    async def _query(self, attempt: Attempt, path: str, body: bytes) -> bytes:
        """Returns the instance's answer to a question about tokens. Raises EngineCallFailed."""
        context, address = attempt.context, attempt.address
        prefix = self._dispatcher.request_prefixes.get("POST" if body else "GET", path, address.url)
        head = context.http_request.head
        message = encode_request(prefix, head, body, context.id, dp_rank=address.dp_rank, extra_headers="")
        limits = self._pool.limits
        seconds = limits.unresponsive_seconds if path.startswith("/v1/") else limits.connect_seconds
        return await call_engine(self._pool, address.url, message, seconds, instance=attempt.instance)

    def _complete(self, context: RequestContext, stream: ContinuedStream, cause: str) -> str | None:
        """Ends an answer whose tokens are all there; returns the cause of the failure if it
        cannot.
        """
        events = stream.closing(with_usage=not context.request.strip_usage and context.request.dialect.requests_usage)
        if not events:
            return cause
        usage = stream.usage(None)
        if usage is not None:  # else the counts of its last event are recorded
            context.record_usage(usage)
        context.response.write_chunks(events, final=True)
        return None

    def _without_usage(self, attempt: Attempt, stream: StreamText) -> None:
        """Makes the attempt one without the request for token counts, which its engine refuses."""
        if attempt.engine_response is not None:
            attempt.engine_response.release_buffer()
        attempt.abort_unfinished()
        attempt.reset()
        attempt.context.request.take_back_usage()
        attempt.attach_engine_message(stream.next_body())

    def _note_first_token(self, attempt: Attempt, stream: ContinuedStream) -> None:
        """Records the first token of an instance that continues a stream, and the pause."""
        now, context = self._now(), attempt.context
        result = context.result
        attempt.on_first_token(now)
        if isinstance(stream, DetachedStream):
            result.recomputed_tokens += stream.prompt_tokens + stream.continued_at
        since = result.last_at
        if isinstance(stream, StreamReplay):
            stream.silent_since = since = since if stream.silent_since is None else stream.silent_since
            if stream.is_behind:
                stream.on_caught_up = partial(self._note_pause, attempt, since)
                return
        self._note_pause(attempt, since)

    def _note_pause(self, attempt: Attempt, since: float | None) -> None:
        """Records how long the client of a broken stream has got nothing."""
        result, key = attempt.context.result, attempt.context.request.model_key
        if since is not None:
            pause = self._now() - since
            result.break_seconds = pause if result.break_seconds is None else max(pause, result.break_seconds)
            self._telemetry.record_inter_token(key, attempt.instance_id, pause)

    async def _parse(self, sent: SentText) -> bool:
        """Parses the text that the client has; returns whether the stream can be resumed."""
        async with self._parsing:
            for is_text in sent.parse_slices():
                if not is_text:
                    return False
                await asyncio.sleep(0)
        return True

    def _choose(
        self,
        broken: Attempt,
        stream: ContinuedStream,
        cause: str,
        tried: frozenset[str],
        why: str = "",
        *,
        is_free: bool = False,
    ) -> Attempt | None:
        """Chooses an instance for the rest of a stream; None if there is none.

        why: of a planned move. is_free: it charges no budget, since such a move has failed.
        """
        context, now = broken.context, self._now()
        key, choice = context.request.model_key, context.choice
        assert choice is not None
        if cause not in _FREE_CAUSES and not is_free and not self._retry_budget.take(context.caller, now):
            return None
        try:
            excluded = self._excluded_instances(broken, tried)
            decision = self._routers.choose(key, context.route_request, now, excluded)
        except NoReadyInstance:
            return None
        instance = self._routers.ready_instance(key, decision.chosen) if decision.chosen is not None else None
        if instance is None:
            return None
        is_replayed = stream.is_replayed
        sent = f"continued {'by replay ' * is_replayed}after {cause}, behind {stream.generated} tokens of the answer"
        sent += f" ({why})" if why else ""
        reason = f"{sent}; {decision.rule}: {decision.reason}"
        here = 0 if is_replayed else stream.generated  # what its engine does not generate
        decision = decision.with_text(rule=CONTINUATION_RULE, reason=reason)
        return self._dispatcher.create_attempt(context, instance, decision, choice.attempt + 1, now, here)

    def _excluded_instances(self, broken: Attempt, tried: frozenset[str]) -> frozenset[str]:
        """Returns the instances that may not resume the stream."""
        context, excluded = broken.context, tried
        loader, adapter = self._dispatcher.adapter_loader, context.request.adapter
        if loader is None or adapter is None:
            return excluded
        use = context.adapter_use = loader.place(context.request.model_key, adapter, excluded)
        return excluded | loader.restrict(context.request.model_key, use)

    async def _relay(self, attempt: Attempt, engine_response: EngineResponse, stream: ContinuedStream) -> str | None:
        context, name, result = attempt.context, attempt.instance_id, attempt.context.result
        self._note_first_token(attempt, stream)
        context.response.on_backpressure = attempt.set_paused
        context.start_comments(engine_response)
        engine_response.relay_to(context.response, GapRecorder(self._telemetry, attempt, stream, self._silence))
        try:
            cause = await engine_response.finished
        finally:  # also if the client has disconnected, or its time is over
            result.last_at, result.event_count = (
                engine_response.last_at,
                engine_response.scanner.event_count + (0 if stream.is_replayed else result.event_count),
            )
            if isinstance(stream, DetachedStream):
                result.next_sequence_number = stream.next_number(engine_response.next_sequence_number)
            context.record_usage(stream.usage(engine_response.scanner.usage))
        if cause is not None and cause != CLIENT_SILENT:
            self._failures.on_stream_failed(context, name, cause)
        return cause

"""The door to continued streams: keeps what they need, and lets another instance generate the rest.

A stream that breaks after its first byte, or that leaves a draining instance, goes on at another
one. What is kept of it depends on its dialect and its engine (`keep`).

The text that clients have is parsed for one stream at a time, and in slices.

Why: an engine that ends breaks hundreds of streams at once. To parse 1 MiB of short events takes
0.1 s, and requests of all callers would wait for the sum.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from fairlead_gateway.continuation.continued_stream import ContinuedStream
from fairlead_gateway.continuation.sent_blocks import NOT_TEXT, SentBlocks
from fairlead_gateway.continuation.sent_tokens import SentTokens, TokenMemory
from fairlead_gateway.continuation.stream_blocks import keeps_text, stream_blocks
from fairlead_gateway.continuation.stream_moves import StreamProgress, decide_move
from fairlead_gateway.continuation.stream_replay import StreamReplay
from fairlead_gateway.continuation.stream_text import SentText, StreamText
from fairlead_gateway.continuation.stream_tokens import (
    StreamTokens,
    asks_for_tokens,
    body_with_seed,
    body_with_tokens,
    needs_replay,
)
from fairlead_gateway.errors import NoReadyInstance
from fairlead_gateway.openai.request import can_resume
from fairlead_gateway.proxy.attempt import Attempt, AttemptParts, is_usage_refused
from fairlead_gateway.proxy.relayed_stream import GapRecorder
from fairlead_gateway.proxy.stream_silence import StreamSilence
from fairlead_gateway.proxy.tool_calls import ToolCallIndexer
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.resilience.worker.retry import AttemptFailure, RetryBudget
from fairlead_gateway.telemetry.decision_log import CONTINUATION_RULE
from fairlead_gateway.telemetry.worker.trace_record import ATTEMPT
from fairlead_gateway.tenants.worker.tenant_policy import hide_cached_tokens
from fairlead_gateway.upstream.connection import UpstreamError
from fairlead_gateway.upstream.connection_pool import ConnectionPool, EngineCallFailed, call_engine
from fairlead_gateway.upstream.request_encoder import encode_request
from fairlead_gateway.upstream.response import CLIENT_SILENT, EngineResponse

STREAM_TOKENS_BYTES: Final = 128 * 1024 * 1024
"""Limit: token ids, requests and held or long events of all streams of a worker, and texts of
messages and responses. A stream that does not fit cannot be continued.
"""
RESUMABLE_STREAMS_BYTES: Final = 128 * 1024 * 1024
"""Limit: the same of all streams of a worker, with requests that are kept for a replay; a stream
that grows beyond cannot be continued."""
MAX_CONTINUATIONS: Final = 8
"""Limit: instances that are asked for the rest of one stream."""
HANDED_OVER: Final = "handed-over"
NO_INSTANCE: Final = "no-instance"
POISON: Final = "poison"
DRAINED: Final = "drain"
_FREE_CAUSES: Final = ("cut", "gone", DRAINED)
"""The engine went, or the gateway has moved the stream: resuming charges no budget."""


class Continuation:
    """The stage that continues streams. One object serves all requests of a worker.

    hand_over: relays the rest of a stream without a task.
    """

    def __init__(
        self,
        parts: AttemptParts,
        pool: ConnectionPool,
        retry_budget: RetryBudget,
        hand_over: Callable[[Attempt, EngineResponse, ContinuedStream | None], None],
        silence: StreamSilence,
    ) -> None:
        self._silence = silence
        self._parts = parts
        self._pool = pool
        self._hand_over = hand_over
        self._telemetry = parts.recorder.telemetry
        self._retry_budget = retry_budget
        self._now = parts.now
        self._routers = parts.routers
        self._failures = parts.failures
        self._parsing = asyncio.Lock()
        self.token_memory = TokenMemory(STREAM_TOKENS_BYTES)
        self.text_memory = TokenMemory(RESUMABLE_STREAMS_BYTES)

    def request_tokens(self, attempt: Attempt, body: bytes) -> bytes:
        """Returns the body of a streamed request, which asks its engine for token ids if it can."""
        context = attempt.context
        request = context.request
        if not asks_for_tokens(request, attempt.address.engine):
            return body
        body, strips = body_with_tokens(request, body)
        is_replayable = needs_replay(request)
        attempt.kept = SentTokens(self.token_memory, strips=strips, is_replayable=is_replayable)
        return body_with_seed(request, body, context.id) if is_replayable else body

    def keep(self, attempt: Attempt, engine_response: EngineResponse) -> ContinuedStream | None:
        """Keeps what another engine needs of a stream from now on; None if nothing can be kept.

        Called before the stream is relayed, with its rewriters set.
        """
        context, tokens = attempt.context, attempt.kept
        request, rewrite = context.request, engine_response.rewrite_events
        if isinstance(tokens, SentTokens) and not tokens.problem and tokens.prompt_tokens:
            if rewrite is not None:
                tokens.head = b"".join(rewrite([tokens.head + b"\n\n"]))
            if not tokens.is_replayable:
                return StreamTokens(request, tokens)
            stream = StreamReplay(request, tokens, context.id, self.text_memory)
            engine_response.on_relayed = stream.note
            return stream
        if keeps_text(request, attempt.address.engine):
            blocks = attempt.kept = SentBlocks(self.token_memory, request.body, self._now)
            engine_response.rewrite_events = (
                blocks.take if rewrite is None else lambda events: blocks.take(rewrite(events))
            )
            return stream_blocks(request, blocks)
        if request.entry.resumes and not attempt.address.leaves_cluster and can_resume(request):
            sent = SentText(self._pool.limits.resumable_bytes, self.text_memory)
            engine_response.on_relayed = sent.add
            return StreamText(request, sent)
        return None

    def note_not_continued(self, attempt: Attempt) -> None:
        """Counts a stream that broke and was never to be continued."""
        context, kept = attempt.context, attempt.kept
        if not context.request.entry.resumes:
            reason = "never"
        elif attempt.address.leaves_cluster:
            reason = "external"
        else:
            reason = "engine" if kept is None else kept.problem or POISON
        context.result.not_continued = reason
        if isinstance(kept, SentBlocks):
            context.error_event = kept.failure
        self._telemetry.record_not_continued(context.request.model_key, reason)

    def plan_move(self, attempt: Attempt, engine_response: EngineResponse, stream: ContinuedStream) -> Attempt | None:
        """Chooses an instance that takes over a stream of one that drains.

        Returns None if none can, if that is not worth it, or if the answer is about to end. A
        replay would generate again what the client has, and a text may find no engine that takes it
        over. Such streams move only when their engine ends.
        """
        decision = decide_move(self._progress(attempt, engine_response, stream))
        if not decision.moves or not stream.may_move or stream.refusal() or stream.is_whole:
            return None
        tried = frozenset({attempt.instance_id})
        planned = self._choose(attempt, stream, DRAINED, tried, decision.reason)
        if planned is not None:
            self._telemetry.record_move(attempt.context.request.model_key, decision.rest_seconds)
        return planned

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
        if broken.engine_response is not None:
            stream.events += broken.engine_response.event_count
            stream.on_break(broken.engine_response.usage)
        key = context.request.model_key
        first_cause, reason, is_planned = cause, "", attempt is not None
        failure = stream.failure
        while not reason:
            tried |= {broken.instance_id}
            if context.trace is not None:
                context.trace.finish_span(ATTEMPT, cause)
            reason = stream.refusal() if await self._parse(stream) else NOT_TEXT
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
            broken.kept = None
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
        if len(tried) > 1 or stream.continuations:
            self._telemetry.record_resumption(key, "broken")
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
            problem = await self._query(attempt, stream)
            if problem:
                return problem
            if stream.is_whole:
                return self._complete(context, stream, "cut")
            attempt.attach_engine_message(stream.next_body())
            attempt.kept = stream.reader
            shows_cached = context.policy.shows_cached(context.request.entry.rules, context.http_request.head.path)
            rewrite = ToolCallIndexer(
                stream.splice if shows_cached else lambda events: [*map(hide_cached_tokens, stream.splice(events))]
            ).rewrite_events
            engine_response, error = await attempt.send_until_verdict(self._pool, rewrite)
            if error is None and stream.needs_task and is_usage_refused(context, engine_response):
                self._without_usage(attempt, stream)
                engine_response, error = await attempt.send_until_verdict(self._pool, rewrite)
            if error is not None:
                self._failures.on_stream_failed(context, attempt.instance_id, error.cause)
                return POISON if error.is_crash and attempt.on_crash() else error.cause
            scanner = engine_response.scanner
            if not engine_response.is_stream or scanner.error is not None or scanner.is_aborted:
                return "refused"
            problem = stream.read_problem(scanner.usage)
            if problem:
                return problem
            self._failures.outlier_detector.on_success(attempt.instance_id, self._now(), context.caller)
            if context.deadline is None and not stream.needs_task:
                self._note_first_token(attempt, stream)
                stream.continuations += 1
                is_handed_over = True
                self._hand_over(attempt, engine_response, stream)
                return HANDED_OVER
            cause = await self._relay(attempt, engine_response, stream)
            is_complete = cause is None
            if cause == "cut" and attempt.on_crash():
                return cause if stream.has_progressed else POISON
            return cause
        except UpstreamError as error:
            self._failures.on_stream_failed(context, attempt.instance_id, error.cause)
            return error.cause
        except (AttemptFailure, EngineCallFailed) as failure:
            return failure.cause
        finally:
            if not is_handed_over:
                attempt.abort_unfinished()
                attempt.kept = None  # the stream may go on with it
                attempt.finish(is_complete, self._now())

    async def _query(self, attempt: Attempt, stream: ContinuedStream) -> str:
        """Queries what the stream needs; returns why the instance cannot continue it.

        Raises EngineCallFailed.
        """
        queries = stream.queries(attempt.address.engine)
        try:
            path, body = next(queries)
            while True:
                path, body = queries.send(await self._answer(attempt, path, body))
        except StopIteration as end:
            problem: str = end.value
            return problem

    async def _answer(self, attempt: Attempt, path: str, body: bytes) -> bytes:
        """Returns the instance's answer to a question about tokens. Raises EngineCallFailed."""
        context, address = attempt.context, attempt.address
        is_generated = path.startswith("/v1/")
        prefix = self._parts.request_prefixes.get("POST" if body else "GET", path, address.url)
        body = attempt.named_body(body) if is_generated else body
        head = context.http_request.head
        message = encode_request(prefix, head, body, context.id, dp_rank=address.dp_rank, extra_headers="")
        limits = self._pool.limits
        seconds = limits.unresponsive_seconds if is_generated else limits.connect_seconds
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

    def _without_usage(self, attempt: Attempt, stream: ContinuedStream) -> None:
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

    async def _parse(self, stream: ContinuedStream) -> bool:
        """Parses the text that the client has; returns whether the stream can be resumed."""
        async with self._parsing:
            for is_text in stream.parse_slices():
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
            excluded = self._exclude_instances(broken, tried)
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
        return self._parts.create_attempt(context, instance, decision, choice.attempt + 1, now, here)

    def _progress(self, attempt: Attempt, engine_response: EngineResponse, stream: ContinuedStream) -> StreamProgress:
        context, generated = attempt.context, stream.computed
        here = generated - stream.earlier
        prompt = stream.prompt_tokens
        if not prompt:
            prompt = int(self._routers.prompt_tokens(context.request.model_key, context.route_request))
        first_seconds = token_seconds = rest = None
        if engine_response.first_at is not None and attempt.dispatched_at is not None:
            first_seconds = engine_response.first_at - attempt.dispatched_at
        if engine_response.first_at is not None and engine_response.last_at is not None and here > 1:
            token_seconds = (engine_response.last_at - engine_response.first_at) / (here - 1)
        admission = self._parts.admission.models.get(context.request.model_key)
        if admission is not None:
            forecast = admission.policy.kv_capacity.forecast
            rest = forecast.expected_remaining(context.caller, prompt, generated, self._now())
            if rest is not None and rest <= 1.0:
                rest = None  # no counted answer was longer, so nothing is known
        limit = context.request.max_tokens
        return StreamProgress(
            prompt + stream.earlier,
            here,
            first_seconds,
            token_seconds,
            rest,
            None if limit is None else max(0, limit - generated),
            stream.moves,
        )

    def _exclude_instances(self, broken: Attempt, tried: frozenset[str]) -> frozenset[str]:
        """Places the request's adapter again, if it has one. Returns the instances that may not
        resume the stream.
        """
        context, excluded = broken.context, tried
        loader, adapter = self._parts.adapter_loader, context.request.adapter
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
            result.next_sequence_number = stream.next_number(engine_response.next_sequence_number)
            context.record_usage(stream.usage(engine_response.scanner.usage))
        if cause is not None and cause != CLIENT_SILENT:
            self._failures.on_stream_failed(context, name, cause)
        return cause

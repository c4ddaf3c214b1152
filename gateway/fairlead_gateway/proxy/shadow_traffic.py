"""Shadow traffic: copies requests of routes, ends copies that are in the way, and compares answers.

A request is copied when its own instance is chosen. So one that a limit refuses is not copied. The
copy is a task of its own that starts after the original is sent, or is about to be. The original
knows nothing of it.

A copy is ended when clients need its instance, when its client has disconnected, and when the
gateway drains. Answers are compared if both have ended, and neither was cut short by the gateway or
the client.

The room of an instance for copies: work of clients goes before them.

One copy of a request: sent to an instance of the shadow, and its answer dropped as it comes.

A copy has one attempt. Its tenant is not charged, no limit counts it, and nothing is retried. Its
choice and outcome are in no log. Router and admission count it as load while it is in flight, since
its engine works for it.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from fairlead.fleet.model import Instance, Model
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.errors import GatewayError, NoReadyInstance
from fairlead_gateway.http.listener import DetachedTransport, HttpRequest, ResponseWriter
from fairlead_gateway.http.timers import TaskDeadline
from fairlead_gateway.openai.model_names import ModelEntry
from fairlead_gateway.proxy.attempt import Attempt, AttemptParts, check_response
from fairlead_gateway.proxy.local_routes import log_internal_error
from fairlead_gateway.proxy.model_selection import ModelRequestParser
from fairlead_gateway.proxy.request_recorder import CopyLifecycle, tpot_seconds
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.resilience.worker.retry import AttemptFailure
from fairlead_gateway.router_registry import RoleRouters, RouterRegistry
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_gateway.routing.request import NO_INSTANCES
from fairlead_gateway.telemetry.decision_log import RequestOutcome, ShadowAnswer
from fairlead_gateway.upstream.connection import LOCAL_CAUSES, UpstreamError
from fairlead_gateway.upstream.connection_pool import ConnectionPool
from fairlead_gateway.upstream.response import StreamObserver

SHADOW_BACKLOG_SECONDS: Final = 0.5
"""Limit: engine time of prompts that wait at an instance; with more, it gets no copies and its
own are ended.
"""

SHADOW_BODY_BYTES: Final = 262_144
"""Limit: a body that is copied for a shadow; larger ones are not."""

ANSWERED: Final = "answered"
FAILED: Final = "failed"
NO_ROOM: Final = "no-room"
NOT_SERVED: Final = "not-served"
REFUSED: Final = "refused"
SHED: Final = "shed"
COPY_CALLER: Final = CallerKey("\0shadow")
"""The caller of copies. No tenant has this name, so nothing of theirs is counted with it."""

_MAX_KV_SHARE: Final = 0.8
"""Share of an instance's KV cache that requests may fill if one of them is a copy.

Why: an engine without KV blocks puts requests back, those of clients too.
"""

ABANDONED: Final = "abandoned"
DRAINED: Final = "drained"
TOO_LARGE: Final = "too-large"
TOO_MANY: Final = "too-many"
UNSUPPORTED: Final = "unsupported"
CHECK_SECONDS: Final = 0.05
"""Time between two checks of copies in flight, for work of clients that needs their instances."""
_FAILED_ANSWER: Final = ShadowAnswer(True, None, None, None)


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


class _Unobserved(StreamObserver):
    """The observer of a stream whose gaps are not recorded."""

    def on_gap(self, seconds: float, now: float) -> None:
        """Does nothing."""


class CopySender:
    """The stage that sends copies. One object serves all copies of a worker."""

    def __init__(
        self, parts: AttemptParts, routers: RoleRouters, pool: ConnectionPool, parser: ModelRequestParser
    ) -> None:
        self._parts = parts
        self._routers = routers
        self._pool = pool
        self._parser = parser
        self._now = parts.now
        self._max_backlog_seconds: float = SHADOW_BACKLOG_SECONDS

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
            http_request, ResponseWriter(DetachedTransport(), None, http_request.id), http_request.id, request, routed
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
        return self._parts.create_copy(context, instance, decision)

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
            context.record_usage(engine_response.scanner.usage)
        if result.status >= 400:
            result.error = FAILED


def answer_of(result: RequestOutcome, *, is_stream: bool) -> ShadowAnswer:
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


def has_room(
    instance: Instance, load: EndpointLoad, max_backlog_seconds: float, *, tokens: float, copied_seconds: float = 0.0
) -> bool:
    """Returns whether an instance has room for copies.

    load: of the instance, with sibling workers.
    tokens: of a copy that is to be sent; 0 for the copies that are there.
    copied_seconds: the part of the backlog that is of these copies themselves.
    """
    if load.backlog_seconds - copied_seconds > max_backlog_seconds:
        return False
    profile = instance.profile
    return profile is None or load.inflight_tokens + tokens <= _MAX_KV_SHARE * profile.kv_tokens


class ShadowTraffic(CopyLifecycle):
    """The copies of one worker.

    is_short_of_memory: returns whether no copies should be made for lack of memory.
    """

    def __init__(
        self,
        parts: AttemptParts,
        routers: RouterRegistry,
        pool: ConnectionPool,
        parser: ModelRequestParser,
        is_short_of_memory: Callable[[], bool],
    ) -> None:
        self._loop = pool.loop
        self._now = parts.now
        self._limits = parts.runtime.limits
        self._routers = routers
        self._admission = parts.admission
        self._telemetry = parts.recorder.telemetry
        self._is_short_of_memory = is_short_of_memory
        self._sender = CopySender(parts, routers.serving, pool, parser)
        self._pairs: dict[str, CopiedRequest] = {}
        self._running: dict[str, CopiedRequest] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def running_count(self) -> int:
        return len(self._running)

    def close(self) -> None:
        """Ends all copies, and makes no more: the gateway drains."""
        self._is_closed = True
        for copied in list(self._running.values()):
            copied.end(DRAINED)
        self._pairs.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_chosen(self, context: RequestContext) -> None:
        """Copies a request whose first instance was chosen, unless something speaks against it."""
        route = context.request.route
        if self._is_closed or route is None or route.shadow is None or context.id in self._pairs:
            return
        shadow: str = route.shadow
        model = self._routers.fleet.models.get(shadow)
        refusal = NOT_SERVED if model is None else self._refusal(context, model)
        if model is None or refusal:
            self._telemetry.record_copy(shadow, context.request.model_key, refusal)
            return
        copied = CopiedRequest(context, ModelEntry(shadow, model), self._now())
        self._pairs[copied.id] = self._running[copied.id] = copied
        copied.task = self._loop.create_task(self._run(copied))
        copied.task.add_done_callback(partial(self._on_copy_ended, copied))
        if self._timer is None:
            self._timer = self._loop.call_later(CHECK_SECONDS, self._on_check)

    def on_original_ended(self, context: RequestContext) -> None:
        """Stores the answer of the original, and compares it if the copy has ended.

        Ends the copy if the client has disconnected.
        """
        copied = self._pairs.get(context.id)
        if copied is None:
            return
        if context.result.client_disconnected:
            del self._pairs[context.id]
            copied.end(ABANDONED)
            return
        has_answered = context.choice is not None and context.request.model_key == copied.original
        copied.original_answer = (
            answer_of(context.result, is_stream=context.request.stream) if has_answered else _FAILED_ANSWER
        )
        self._compare(copied)

    def _refusal(self, context: RequestContext, model: Model) -> str:
        """Returns why a request is not copied to a model, in one word; empty if it is."""
        request, limits, shadow = context.request, self._limits, model.key
        if model.leaves_cluster:  # a copy answers no client
            return UNSUPPORTED
        is_copied = request.dialect.generates and not request.is_passthrough and request.held is None
        if not is_copied or self._routers.prefilling.has_instances(shadow):
            return UNSUPPORTED
        if len(context.http_request.body) > SHADOW_BODY_BYTES:
            return TOO_LARGE
        if len(self._running) >= limits.shadow_copies or len(self._pairs) >= limits.shadow_pairs:
            return TOO_MANY
        if not self._routers.serving.ready_instances(shadow):
            return NOT_SERVED
        if request.adapter is not None:
            return UNSUPPORTED
        return NO_ROOM if self._is_short_of_memory() or self._admission.has_queue(shadow) else ""

    async def _run(self, copied: CopiedRequest) -> None:
        """Sends a copy; sets its answer and its outcome."""
        try:
            with TaskDeadline(self._loop, self._limits.response_seconds):
                answer = copied.answer = await self._sender.send(copied)
            copied.outcome = FAILED if answer.failed else ANSWERED
        except CopyRefused as refused:
            copied.outcome = refused.outcome
        except NoReadyInstance:
            copied.outcome = NOT_SERVED
        except GatewayError:
            copied.outcome = REFUSED
        except TimeoutError:
            copied.outcome = FAILED
        except (AttemptFailure, UpstreamError) as failure:
            copied.outcome = failure_outcome(failure)
        except asyncio.CancelledError:
            copied.outcome = copied.end_reason
        except Exception as defect:  # noqa: BLE001 - the boundary of a copy: the original must not notice it
            log_internal_error(copied.http_request.id, defect)
            copied.outcome = FAILED

    def _on_copy_ended(self, copied: CopiedRequest, task: asyncio.Task[None]) -> None:
        """Counts a copy. Called in any case, also if its task never ran."""
        del task
        del self._running[copied.id]
        copied.attempt = copied.source = None
        outcome = copied.outcome or copied.end_reason or DRAINED
        self._telemetry.record_copy(copied.entry.key, copied.original, outcome)
        if outcome not in (ANSWERED, FAILED):
            self._pairs.pop(copied.id, None)
            return
        copied.ended_at = self._now()
        if copied.answer is None:
            copied.answer = _FAILED_ANSWER
        self._compare(copied)

    def _compare(self, copied: CopiedRequest) -> None:
        """Records the comparison, once both answers are known."""
        answer, original = copied.answer, copied.original_answer
        if answer is None or original is None or copied.id not in self._pairs:
            return
        if copied.ended_at is None:
            return
        del self._pairs[copied.id]
        self._telemetry.record_comparison(copied.entry.key, copied.original, answer, original)

    def _on_check(self) -> None:
        """Ends copies whose instances are needed, and forgets those whose originals are lost."""
        self._timer = None
        now = self._now()
        for copied in self._in_the_way():
            copied.end(SHED)
        for copied in list(self._pairs.values()):
            if copied.ended_at is not None and now - copied.ended_at > self._limits.response_seconds:
                del self._pairs[copied.id]
        if self._pairs or self._running:
            self._timer = self._loop.call_later(CHECK_SECONDS, self._on_check)

    def _in_the_way(self) -> list[CopiedRequest]:
        """Returns the copies at instances that have no room for them any more."""
        copied_seconds: dict[str, float] = {}
        for copied in self._running.values():
            attempt = copied.attempt
            if attempt is not None:
                seconds = copied_seconds.get(attempt.instance_id, 0.0)
                copied_seconds[attempt.instance_id] = seconds + copied.prefill_seconds
        found: list[CopiedRequest] = []
        for copied in self._running.values():
            attempt = copied.attempt
            if attempt is None:
                continue
            router = self._routers.serving.router(copied.entry.key)
            endpoint = None if router is None else router.endpoint(attempt.instance_id)
            if router is None or endpoint is None:
                continue
            load = router.total_load(endpoint.load)
            own = copied_seconds.get(attempt.instance_id, 0.0)
            limit = SHADOW_BACKLOG_SECONDS
            is_full = not has_room(attempt.instance, load, limit, tokens=0.0, copied_seconds=own)
            if is_full or self._admission.has_queue(copied.entry.key):
                found.append(copied)
        return found

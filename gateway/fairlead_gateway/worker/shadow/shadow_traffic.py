"""Shadow traffic: copies requests of routes, ends copies that are in the way, and compares answers.

A request is copied when its own instance is chosen. So one that a limit refuses is not copied. The
copy is a task of its own that starts after the original is sent, or is about to be. The original
knows nothing of it.

A copy is ended when clients need its instance, when its client has disconnected, and when the
gateway drains. Answers are compared if both have ended, and neither was cut short by the gateway or
the client.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from fairlead.fleet.model import Model
from fairlead_gateway.errors import GatewayError, NoReadyInstance
from fairlead_gateway.http.timers import TaskDeadline
from fairlead_gateway.telemetry.outcome import ShadowAnswer
from fairlead_gateway.worker.dispatch.router_registry import RouterRegistry
from fairlead_gateway.worker.model_selection.request_parser import ModelRequestParser
from fairlead_gateway.worker.openai.model_names import ModelEntry
from fairlead_gateway.worker.proxy.attempt import Dispatcher
from fairlead_gateway.worker.proxy.local_routes import log_internal_error
from fairlead_gateway.worker.proxy.request_recorder import CopyLifecycle
from fairlead_gateway.worker.request_context import RequestContext
from fairlead_gateway.worker.resilience.retry import AttemptFailure
from fairlead_gateway.worker.shadow.shadow_copy import (
    ANSWERED,
    FAILED,
    NO_ROOM,
    NOT_SERVED,
    REFUSED,
    SHED,
    CopiedRequest,
    CopyRefused,
    CopySender,
    answer_of,
    failure_outcome,
)
from fairlead_gateway.worker.shadow.spare_capacity import has_room
from fairlead_gateway.worker.upstream.connection import UpstreamError
from fairlead_gateway.worker.upstream.connection_pool import ConnectionPool

ABANDONED: Final = "abandoned"
DRAINED: Final = "drained"
TOO_LARGE: Final = "too-large"
TOO_MANY: Final = "too-many"
UNSUPPORTED: Final = "unsupported"
CHECK_SECONDS: Final = 0.05
"""Time between two checks of copies in flight, for work of clients that needs their instances."""
_COPIED_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Paths that generate text and leave nothing behind at an engine."""
_FAILED_ANSWER: Final = ShadowAnswer(True, None, None, None)


class ShadowTraffic(CopyLifecycle):
    """The copies of one worker.

    is_short_of_memory: returns whether no copies should be made for lack of memory.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        routers: RouterRegistry,
        pool: ConnectionPool,
        parser: ModelRequestParser,
        is_short_of_memory: Callable[[], bool],
    ) -> None:
        self._loop = pool.loop
        self._now = dispatcher.now
        self._limits = dispatcher.runtime.limits
        self._routers = routers
        self._admission = dispatcher.admission
        self._telemetry = dispatcher.recorder.telemetry
        self._is_short_of_memory = is_short_of_memory
        self._sender = CopySender(dispatcher, routers.serving, pool, parser)
        self._pairs: dict[str, CopiedRequest] = {}
        self._running: dict[str, CopiedRequest] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def running_count(self) -> int:
        """Returns the number of copies in flight."""
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
        """Compares the answers if the copy has ended; ends the copy if the client has
        disconnected.
        """
        copied = self._pairs.get(context.id)
        if copied is None:
            return
        if context.result.client_disconnected:
            del self._pairs[copied.id]
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
        if context.http_request.head.path not in _COPIED_PATHS or self._routers.prefilling.has_instances(shadow):
            return UNSUPPORTED
        if len(context.http_request.body) > limits.shadow_body_bytes:
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
            limit = self._limits.shadow_backlog_seconds
            is_full = not has_room(attempt.instance, load, limit, tokens=0.0, copied_seconds=own)
            if is_full or self._admission.has_queue(copied.entry.key):
                found.append(copied)
        return found

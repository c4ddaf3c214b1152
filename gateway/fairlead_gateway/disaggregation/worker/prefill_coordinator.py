"""Remote prefill: for models with prefill instances, another engine computes the prompt first.

For each prompt, `routing.prefill_placement` decides between the instance that would answer and
the best prefill instance. If the prefill goes elsewhere:

1. The prefill engine gets a request for one token, with a separate time limit. The token is
   dropped.
2. The decode instance is chosen, as late as possible, and gets the address of the KV.
3. The transfer is valid for one attempt, and for as long as the prefill engine keeps the blocks.

If any of this fails, the request goes on as a plain one. Another prefill engine is tried once. A
decode that failed, or sent nothing in time, is tried again without the transfer. Prefill instances
and pairs that failed are avoided for a while. A prefill engine that broke off on a
prompt counts against the prompt like any engine (`resilience.poison_requests`).

Pairs of prefill and decode instances that failed lately, and are avoided.

A request can fail on every pair that gets it. So a failure that may depend on the request makes a
pair suspect for its caller only. Once enough callers had one, the pair is suspect for all. Failures
that depend on no request, such as a refused connection, count for all at once. Ejections follow the
same evidence (`resilience.fault_evidence`).

The duration of KV transfers, learned per model as seconds per token.

After a remote prefill, a decode engine's first event comes once it has the KV and has made a step.
The time beyond two of its steps and a fixed part, divided by the prompt's tokens, is averaged.
Before the first observation only the fixed part counts, so in doubt prompts are transferred.

The prefills that run at the same time as their decodes, as those of SGLang.

A prefill runs to its end even if its request ends, since to cancel it would abort the transfer. Of
those without a request, each caller has a few. Beyond, the oldest is cancelled.

Why: a caller could send requests and leave at once. Each left a connection and a body for as long
as a prefill may take.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from fairlead.decision import Decision
from fairlead.fleet.model import Fleet, Instance
from fairlead_gateway.caller_key import ANONYMOUS, CallerKey
from fairlead_gateway.dialects.schemas import GenerationFields
from fairlead_gateway.disaggregation.worker import kv_connectors
from fairlead_gateway.disaggregation.worker.kv_connectors import Handoff, HandoffState
from fairlead_gateway.errors import NoReadyInstance, QuarantinedRequest
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.openai.json_edit import prepend_members, set_members
from fairlead_gateway.openai.model_names import body_with_model
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.resilience.outlier_detection import REQUEST_INDEPENDENT_CAUSES
from fairlead_gateway.resilience.poison_requests import PoisonRequestGuard
from fairlead_gateway.resilience.worker.retry import AttemptFailure
from fairlead_gateway.router_registry import RouterRegistry
from fairlead_gateway.routing.prefill_placement import LOCAL_RULES, place_prefill
from fairlead_gateway.routing.request import NO_INSTANCES, RouteRequest
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.telemetry import OK, MetricsRecorder
from fairlead_gateway.telemetry.handoff_record import BYPASSED, DONE, FAILED, PrefillAttempt
from fairlead_gateway.telemetry.worker.trace_record import PREFILL
from fairlead_gateway.upstream.connection import UpstreamError
from fairlead_gateway.upstream.connection_pool import ConnectionPool, EngineCallFailed, call_engine
from fairlead_gateway.upstream.request_encoder import (
    allowed_header_text,
    create_hop_id,
    encode_request,
    request_prefix,
)
from fairlead_gateway.upstream.response import EngineResponse

HANDOFF_QUERY_SECONDS: Final = 2.0
"""Limit: a query to Mooncake's bootstrap server for an engine's id."""

HANDOFF_TRANSFER_SECONDS: Final = 0.02
"""Limit: minimum time of a KV transfer, whatever its size; observed times are added."""

MAX_WITHOUT_REQUEST: Final = 16

SMOOTHING: Final = 0.1
"""Weight of the newest transfer in the mean; it follows in about ten transfers."""

_Pair = tuple[str, str | None]

_MAX_PREFILL_ATTEMPTS: Final = 2
_QUARANTINED: Final = "quarantined"
_MAX_RANDOM_ID: Final = 1 << 63
_EXPIRED: Final = ("expired", "the blocks are not kept any longer")


class ConcurrentPrefills:
    """The tasks of these prefills in one worker."""

    def __init__(self, runtime: WorkerRuntime) -> None:
        self._runtime = runtime
        self._tasks: set[asyncio.Task[None]] = set()
        self._without_request: dict[CallerKey, dict[asyncio.Task[None], None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, prefill: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts a prefill."""
        task = self._runtime.loop.create_task(prefill)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def on_request_ended(self, task: asyncio.Task[None], caller: CallerKey, size: int) -> None:
        """Counts a prefill that runs on without its request. Cancels the caller's oldest one if
        there are too many.

        size: of its body, in bytes.
        """
        if task.done():
            return
        tasks = self._without_request.setdefault(caller, {})
        tasks[task] = None
        self._runtime.count_detached_bytes(caller, size)
        task.add_done_callback(lambda ended: self._forget(ended, caller, size))
        if len(tasks) > MAX_WITHOUT_REQUEST:
            oldest = next(iter(tasks))
            del tasks[oldest]
            oldest.cancel()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _forget(self, task: asyncio.Task[None], caller: CallerKey, size: int) -> None:
        self._runtime.count_detached_bytes(caller, -size)
        tasks = self._without_request.get(caller)
        if tasks is not None:
            tasks.pop(task, None)
            if not tasks:
                del self._without_request[caller]


class TransferEstimator:
    """The transfer times of all models of one process."""

    def __init__(self) -> None:
        self._fixed_seconds = HANDOFF_TRANSFER_SECONDS
        self._token_seconds: dict[str, float] = {}

    def retain(self, models: Collection[str]) -> None:
        self._token_seconds = {key: seconds for key, seconds in self._token_seconds.items() if key in models}

    def predict_seconds(self, model: str, prompt_tokens: float) -> float:
        """Returns the expected transfer time of a prompt's KV, in seconds."""
        return self._fixed_seconds + self._token_seconds.get(model, 0.0) * prompt_tokens

    def observe(self, model: str, prompt_tokens: float, seconds: float) -> None:
        """Adds a transfer to the mean of its model.

        seconds: from the dispatch to the decode engine's first event, without its two steps.
        """
        if prompt_tokens <= 0.0:
            return
        seconds_per_token = max(0.0, seconds - self._fixed_seconds) / prompt_tokens
        mean = self._token_seconds.get(model)
        self._token_seconds[model] = (
            seconds_per_token if mean is None else mean + SMOOTHING * (seconds_per_token - mean)
        )


class PairHealth:
    """Prefill instances and pairs that failed less than `handoff_suspect_seconds` ago."""

    def __init__(self, runtime: WorkerRuntime) -> None:
        self._now = runtime.now
        self._suspect_seconds = runtime.limits.handoff_suspect_seconds
        self._min_callers = runtime.limits.breaker_fault_sources
        self._suspect_until: dict[_Pair, float] = {}
        self._suspect_of: dict[_Pair, dict[CallerKey, float]] = {}

    def mark_suspect(self, prefill_id: str, decode_id: str | None = None, caller: CallerKey | None = None) -> None:
        """Avoids a pair for a while, or the whole prefill instance if `decode_id` is None.

        caller: whose request failed; None if the failure does not depend on the request.
        """
        self._forget_old(now := self._now())
        pair, until = (prefill_id, decode_id), now + self._suspect_seconds
        if caller is not None:
            callers = self._suspect_of.setdefault(pair, {})
            callers[caller] = until
            if len(callers) < self._min_callers:
                return
            del self._suspect_of[pair]
        self._suspect_until[pair] = until

    def is_usable(self, prefill: Instance, decode: Instance, caller: CallerKey) -> bool:
        return decode.transfer == prefill.transfer and not self._is_suspect((prefill.id, decode.id), caller)

    def unusable_prefills(
        self, prefills: Mapping[str, Instance], decodes: Iterable[Instance], caller: CallerKey
    ) -> frozenset[str]:
        """Returns the prefill instances that failed lately, or have no usable decode instance."""
        decodes = tuple(decodes)
        return frozenset(
            name
            for name, prefill in prefills.items()
            if self._is_suspect((name, None), caller)
            or not any(self.is_usable(prefill, decode, caller) for decode in decodes)
        )

    def _is_suspect(self, pair: _Pair, caller: CallerKey) -> bool:
        if not self._suspect_until and not self._suspect_of:
            return False
        now = self._now()
        return self._suspect_until.get(pair, now) > now or self._suspect_of.get(pair, {}).get(caller, now) > now

    def _forget_old(self, now: float) -> None:
        self._suspect_until = {pair: until for pair, until in self._suspect_until.items() if until > now}
        recent = {
            pair: {caller: until for caller, until in callers.items() if until > now}
            for pair, callers in self._suspect_of.items()
        }
        self._suspect_of = {pair: callers for pair, callers in recent.items() if callers}


class PrefillCoordinator:
    """The coordinator of disaggregated prefill: placement, calls to prefill engines, and
    preparation of decode attempts.

    random: returns numbers from 0 to 1.
    """

    def __init__(
        self,
        runtime: WorkerRuntime,
        *,
        routers: RouterRegistry,
        pool: ConnectionPool,
        telemetry: MetricsRecorder,
        poison_guard: PoisonRequestGuard,
        random: Callable[[], float],
    ) -> None:
        self._decode_routers = routers.serving
        self.prefill_routers = routers.prefilling
        self._pool = pool
        self._telemetry = telemetry
        self._now = runtime.now
        self._limits = runtime.limits
        self._poison_guard = poison_guard
        self._random = random
        self._pair_health = PairHealth(runtime)
        self._hop_id = create_hop_id(routers.serving.secret)
        self._engine_ids: dict[str, str] = {}
        self.concurrent_prefills = ConcurrentPrefills(runtime)
        self._transfer_estimator = TransferEstimator()

    def update_fleet(self, fleet: Fleet) -> None:
        """Forgets the transfer times of models, and the engine ids of instances, that have left."""
        self._transfer_estimator.retain(fleet.models)
        if self._engine_ids:
            present = {instance.id for instances in fleet.instances.values() for instance in instances}
            self._engine_ids = {name: engine_id for name, engine_id in self._engine_ids.items() if name in present}

    def choose_decode_instance(
        self,
        context: RequestContext,
        handoff: HandoffState,
        excluded: frozenset[str],
        now: float,
        deferred: Mapping[str, float],
    ) -> Decision:
        """Returns the decision on the instance that answers.

        deferred: prefill in seconds by instance that waits behind this request.

        Raises NoReadyInstance if none is ready.
        """
        if handoff.preselected is not None:
            preselected, handoff.preselected = handoff.preselected, None
            return preselected
        if handoff.transfer is not None:
            excluded |= self._incompatible_instances(context, handoff.transfer, excluded)
        # Routing counts a prompt once: its placement has chosen a decode instance already.
        is_placed = handoff.record.placement is not None
        return self._decode_routers.choose_for(context, excluded, now, deferred, preview=is_placed)

    async def prefill_remotely(self, context: RequestContext) -> None:
        """Prefills the prompt at a prefill instance, if that is worth it and works.

        Sets `context.handoff`. Raises NoReadyInstance if no instance can answer, QuarantinedRequest
        if engines broke off on the prompt.
        """
        if self._decode_routers.router(context.request.model_key) is None:
            return
        handoff = context.handoff = HandoffState()
        record = handoff.record
        ineligible = kv_connectors.ineligible_reason(context.request)
        if ineligible is not None:
            self._record_end(context, handoff, BYPASSED, ineligible[0], f"no hand-off: {ineligible[1]}")
            return
        started_at = self._now()
        preselected = self._decode_routers.choose_for(context, NO_INSTANCES, started_at)
        if preselected.chosen is None:
            return
        placement = record.placement = self.place_prefill(
            context.request, context.route_request, preselected.chosen, started_at, caller=context.caller
        )
        if placement.rule in LOCAL_RULES:
            handoff.preselected = preselected
            self._record_end(context, handoff, BYPASSED, placement.rule, f"no hand-off: {placement.reason}")
            return
        cause, reason = await self._prefill(context, handoff)
        record.waited_seconds = self._now() - started_at
        if handoff.transfer is None:
            self._record_end(context, handoff, FAILED, cause, f"no hand-off: {reason}")
            if cause == _QUARANTINED:
                raise QuarantinedRequest(self._limits.quarantine_seconds)
        else:
            record.message = handoff.transfer.description

    def place_prefill(
        self, request: ModelRequest, route: RouteRequest, decode_id: str, now: float, *, caller: CallerKey = ANONYMOUS
    ) -> Decision:
        """Returns the decision on where to prefill, if the ready instance `decode_id` answers.

        Remembers nothing.
        """
        key, remote = request.model_key, None
        decode_router, prefill_router = self._decode_routers.router(key), self.prefill_routers.router(key)
        local = None if decode_router is None else decode_router.estimate_prefill(route, decode_id, now)
        assert local is not None
        try:
            excluded = self._unusable_prefill_instances(key, caller)
            best = self.prefill_routers.choose(key, route, now, excluded, preview=True).chosen
        except NoReadyInstance:
            best = None
        if prefill_router is not None and best is not None:
            remote = prefill_router.estimate_prefill(route, best, now)
        objectives = request.model.objectives
        return place_prefill(
            local,
            remote,
            itl_seconds=objectives.itl_seconds,
            ttft_seconds=objectives.ttft_limit_seconds(local.prompt_tokens),
            transfer_seconds=self._transfer_estimator.predict_seconds(key, local.prompt_tokens),
            min_remote_tokens=self._limits.handoff_min_tokens,
        )

    def request_body(self, context: RequestContext) -> bytes:
        """Returns the body of the next attempt, with the fields of its transfer, if it has one.

        A transfer that has expired is given up.
        """
        handoff, body = context.handoff, context.request.body
        if handoff is None or handoff.transfer is None:
            return body
        if self._now() >= handoff.transfer.expires_at:
            self._abandon_transfer(context, handoff, *_EXPIRED)
            return body
        return set_members(body, handoff.transfer.fields)

    def add_kv_source(self, context: RequestContext, body: bytes, source: str) -> bytes:
        """Returns the body with fields that name the instance that has cached a part of the prompt.

        Unchanged if that instance has left or serves no blocks, if the attempt has a transfer, or
        if nothing is generated. If the instance has lost the blocks, the engine computes them.
        """
        instance = self._decode_routers.ready_instance(context.request.model_key, source)
        if (
            instance is None
            or instance.pull is None
            or context.transfer is not None
            or not isinstance(context.request.fields, GenerationFields)
        ):
            return body
        request_id = f"{context.id}-{self._random_id():x}"
        return prepend_members(body, kv_connectors.kv_source_fields(instance.pull.address, request_id))

    @contextmanager
    def first_event_deadline(
        self, context: RequestContext, handoff: HandoffState, instance: Instance, engine_response: EngineResponse
    ) -> Iterator[None]:
        """Limits the time until the first event of an attempt with a transfer.

        Also starts SGLang's prefill.
        """
        transfer = handoff.transfer
        assert transfer is not None
        transfer.decode_id = instance.id
        handoff.is_transferred = True
        prefill = None
        if transfer.prefill.transfer == "sglang":
            prefill = self._start_concurrent_prefill(context, handoff, transfer)
        seconds = kv_connectors.first_event_timeout_seconds(
            context.request.stream, context.request.max_tokens, self._limits
        )
        timer = self._pool.loop.call_later(seconds, engine_response.on_error, UpstreamError("timeout"))
        try:
            yield
        except BaseException:
            if prefill is not None:
                self.concurrent_prefills.on_request_ended(prefill, context.caller, len(context.request.body))
            raise
        finally:
            timer.cancel()

    def on_decode_accepted(self, context: RequestContext, handoff: HandoffState) -> None:
        """Records the transfer as complete, since the decode engine has answered."""
        if handoff.transfer is not None:
            record = handoff.record
            assert record.placement is not None
            self._observe_transfer(context, handoff.transfer, record.placement)
            self._record_end(context, handoff, DONE, record.placement.rule, record.message)
            handoff.transfer = None

    def give_up_transfer(self, context: RequestContext, failure: AttemptFailure) -> bool:
        """Gives up the transfer of a failed attempt and avoids its pair of instances for a while.

        Returns whether the attempt is repeated without the transfer, at any instance.
        """
        handoff = context.handoff
        if handoff is None or handoff.transfer is None or handoff.transfer.decode_id is None:
            return False
        transfer, handoff.transfer, handoff.is_transferred = handoff.transfer, None, False
        self._mark_suspect(context, transfer.prefill.id, transfer.decode_id, failure.cause)
        message = f"the hand-off from {transfer.prefill.id} failed on {transfer.decode_id} ({failure.cause}), plain now"
        self._record_end(context, handoff, FAILED, f"decode-{failure.cause}", message)
        return not failure.crashed and failure.was_sent and not failure.is_overload

    def _observe_transfer(self, context: RequestContext, transfer: Handoff, placement: Decision) -> None:
        """Learns the transfer time of a stream whose prefill ended before its dispatch."""
        dispatched_at, step = context.result.dispatched_at, placement.inputs.get("step_seconds")
        if not context.request.stream or dispatched_at is None or transfer.prefill.transfer == "sglang":
            return
        step_seconds = step.value if step is not None and step.value is not None else 0.0
        key = context.request.model_key
        tokens = self._decode_routers.prompt_tokens(key, context.route_request)
        self._transfer_estimator.observe(key, tokens, self._now() - dispatched_at - 2.0 * step_seconds)

    async def _prefill(self, context: RequestContext, handoff: HandoffState) -> tuple[str, str]:
        """Prefills at one of the prefill instances and sets `handoff.transfer`.

        Returns the cause (one word) and the reason (text) of a failure; without meaning on success.
        """
        key = context.request.model_key
        excluded = self._unusable_prefill_instances(key, context.caller)
        cause, reason = "no-prefill-instance", "no prefill instance is ready and trusted"
        for _ in range(_MAX_PREFILL_ATTEMPTS):
            try:
                decision = self.prefill_routers.choose(key, context.route_request, self._now(), excluded)
            except NoReadyInstance:
                break
            chosen = decision.chosen
            instance = None if chosen is None else self.prefill_routers.ready_instance(key, chosen)
            if instance is None:
                break
            excluded |= {instance.id}
            attempt = PrefillAttempt(instance.id, decision, self._now())
            handoff.record.attempts.append(attempt)
            try:
                handoff.transfer = await self._prefill_on(context, instance, attempt)
                break
            except EngineCallFailed as failure:
                cause, reason = f"prefill-{failure.cause}", f"{instance.id} did not prefill: {failure.reason}"
                if self._on_call_failed(context, attempt, failure):
                    return _QUARANTINED, f"{reason}; another engine broke off on this prompt before"
                if failure.is_final:
                    break
        return cause, reason

    def _incompatible_instances(
        self, context: RequestContext, transfer: Handoff, excluded: frozenset[str]
    ) -> frozenset[str]:
        """Returns the instances that cannot take the transfer.

        Gives the transfer up and returns none if it has expired or no instance can take it.
        """
        handoff = context.handoff
        assert handoff is not None
        ready, is_usable = self._decode_routers.ready_instances(context.request.model_key), self._pair_health.is_usable
        incompatible = frozenset(
            name for name, decode in ready.items() if not is_usable(transfer.prefill, decode, context.caller)
        )
        if self._now() >= transfer.expires_at:
            self._abandon_transfer(context, handoff, *_EXPIRED)
        elif ready.keys() <= incompatible | excluded:
            self._abandon_transfer(context, handoff, "no-decode-instance", "no instance can take it")
        else:
            return incompatible
        return NO_INSTANCES

    async def _prefill_on(self, context: RequestContext, instance: Instance, attempt: PrefillAttempt) -> Handoff:
        """Prefills on one instance and returns the transfer. Raises EngineCallFailed.

        SGLang's prefill is only prepared; it starts with the decode.
        """
        lease_seconds = self._limits.handoff_lease_seconds
        description = f"prefill on {instance.id} ({attempt.decision.rule}: {attempt.decision.reason})"
        if instance.transfer == "sglang":
            fields = kv_connectors.sglang_fields(kv_connectors.bootstrap_url(instance), self._random_id())
            return Handoff(instance, fields, self._now() + lease_seconds, f"{description} at once")
        if instance.transfer == "mooncake":
            transfer_id = f"xfer-{context.id}-{self._random_id():x}"
            engine_id = await self._engine_id(instance)
            attempt.started_at = self._now()
            await self._call_prefill(context, instance, kv_connectors.mooncake_prefill_fields(transfer_id))
            decode_fields: Mapping[str, bytes] | None = kv_connectors.mooncake_decode_fields(
                transfer_id, engine_id, kv_connectors.bootstrap_url(instance)
            )
        else:
            response = await self._call_prefill(context, instance, kv_connectors.nixl_prefill_fields())
            decode_fields = kv_connectors.nixl_decode_fields(response)
        if decode_fields is None:
            raise EngineCallFailed(
                "the response does not say where the blocks are", cause="no-blocks", is_suspicious=False
            )
        now = self._now()
        self._record_attempt_end(context, attempt, OK)
        description += f" in {(now - attempt.started_at) * 1e3:.0f} ms"
        return Handoff(instance, decode_fields, now + lease_seconds, description)

    async def _call_prefill(self, context: RequestContext, instance: Instance, fields: Mapping[str, bytes]) -> bytes:
        """Sends the prefill and returns the body of the response. Raises EngineCallFailed."""
        body = kv_connectors.prefill_body(context.request, fields)
        if instance.served_name is not None:
            body = body_with_model(instance.served_name, body)
        head = context.http_request.head
        extra = context.trace.start_span(instance, PREFILL, "") if context.trace is not None else ""
        allowed_headers = context.request.entry.allowed_headers
        if allowed_headers:
            extra += allowed_header_text(head, allowed_headers)
        prefix = request_prefix("POST", head.path, instance.url, self._hop_id)
        message = encode_request(prefix, head, body, context.id, dp_rank=instance.dp_rank, extra_headers=extra)
        router = self.prefill_routers.router(context.request.model_key)
        if router is None:
            raise EngineCallFailed("the model has left the fleet", cause="model-left", is_suspicious=False)
        router.on_dispatch(context.route_request, instance.id, self._now())
        is_complete = False
        try:
            seconds = self._limits.handoff_prefill_seconds
            response = await call_engine(self._pool, instance.address, message, seconds, instance=instance)
            is_complete = True
            return response
        finally:
            (router.on_finish if is_complete else router.on_abandoned)(context.route_request.id, self._now())

    def _start_concurrent_prefill(
        self, context: RequestContext, handoff: HandoffState, transfer: Handoff
    ) -> asyncio.Task[None]:
        """Starts SGLang's prefill, which runs at the same time as the decode."""
        attempt = handoff.record.attempts[-1]
        attempt.started_at = self._now()

        async def prefill() -> None:
            try:
                await self._call_prefill(context, transfer.prefill, transfer.fields)
                self._record_attempt_end(context, attempt, OK)
            except EngineCallFailed as failure:
                self._on_call_failed(context, attempt, failure)

        return self.concurrent_prefills.start(prefill())

    async def _engine_id(self, instance: Instance) -> str:
        """Returns Mooncake's id of an engine, which is cached until the engine fails.

        Raises EngineCallFailed.
        """
        known = self._engine_ids.get(instance.id)
        if known is not None:
            return known
        address = kv_connectors.bootstrap_url(instance)
        message = [f"GET /query HTTP/1.1\r\nhost: {address.partition('://')[2]}\r\n\r\n".encode("latin-1")]
        try:
            seconds = HANDOFF_QUERY_SECONDS
            response = await call_engine(self._pool, address, message, seconds, instance=instance)
        except EngineCallFailed as failure:
            failure.crashed = False  # it has not met the prompt
            raise
        engine_id = kv_connectors.parse_mooncake_engine_id(response, instance.dp_rank or 0)
        if engine_id is None:
            raise EngineCallFailed("the bootstrap server names no engine", cause="no-engine-name", is_suspicious=True)
        self._engine_ids[instance.id] = engine_id
        return engine_id

    def _unusable_prefill_instances(self, key: str, caller: CallerKey) -> frozenset[str]:
        return self._pair_health.unusable_prefills(
            self.prefill_routers.ready_instances(key), self._decode_routers.ready_instances(key).values(), caller
        )

    def _mark_suspect(self, context: RequestContext, prefill_id: str, decode_id: str | None, cause: str) -> None:
        """Avoids a pair or a prefill instance; forgets its engine id, which a restart changes."""
        caller = None if cause in REQUEST_INDEPENDENT_CAUSES else context.caller
        self._pair_health.mark_suspect(prefill_id, decode_id, caller)
        self._engine_ids.pop(prefill_id, None)

    def _on_call_failed(self, context: RequestContext, attempt: PrefillAttempt, failure: EngineCallFailed) -> bool:
        """Records a failed prefill; returns whether the prompt is blocked from now on."""
        self._record_attempt_end(context, attempt, failure.cause)
        if failure.is_suspicious:
            self._mark_suspect(context, attempt.instance_id, None, failure.cause)
        attempt.crashed = failure.crashed
        if not failure.crashed:
            return False
        fingerprint = context.body_fingerprint(self._poison_guard.fingerprint)
        return self._poison_guard.on_crash(fingerprint, attempt.instance_id, attempt.started_at, self._now())

    def _abandon_transfer(self, context: RequestContext, handoff: HandoffState, cause: str, reason: str) -> None:
        self._record_end(context, handoff, FAILED, cause, f"no hand-off after all: {reason}")
        handoff.transfer = None

    def _record_end(
        self, context: RequestContext, handoff: HandoffState, outcome: str, reason: str, message: str
    ) -> None:
        record, key = handoff.record, context.request.model_key
        record.outcome, record.reason, record.message = outcome, reason, message
        local_tokens = None
        if outcome != DONE and record.prefilled_locally:
            local_tokens = self._decode_routers.prompt_tokens(key, context.route_request)
        self._telemetry.record_handoff(key, outcome, reason, local_tokens)

    def _record_attempt_end(self, context: RequestContext, attempt: PrefillAttempt, result: str) -> None:
        attempt.seconds, attempt.result = self._now() - attempt.started_at, result
        self._telemetry.record_prefill(context.request.model_key, attempt.instance_id, attempt.seconds, result)
        if context.trace is not None:
            context.trace.finish_span(PREFILL, None if result == OK else result)

    def _random_id(self) -> int:
        return int(self._random() * _MAX_RANDOM_ID)

"""The leg before forward: where a model's engines are split, another engine computes the prompt first.

Who computes a prompt is decided anew for each (``routing.convertible``), between the engine that would answer it and the best
of those that prefill. The prefill engine is asked for one token within its own time limit, and that token is dropped; then the
engine that decodes is chosen, as late as possible, and told where the result lies. The hand-off is bound to one attempt and to the
time that the prefill engine keeps the blocks. When anything of it fails, the request goes on as a plain one: another prefill engine
is tried once, and a decode that failed or said nothing in time is asked again without the hand-off, since it was not its fault.
Prefill engines and pairs that failed are left alone for a while. One that broke off on a prompt counts against that prompt as any
engine does: when two have, one after the other, no third one gets it.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from fairlead.decision import Decision
from fairlead.fleet.model import Instance
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.errors import NoReadyInstance, QuarantinedRequest
from fairlead_gateway.routing.prefill_placement import LOCAL_RULES, place_prefill
from fairlead_gateway.routing.request import RouteRequest
from fairlead_gateway.telemetry import OK, MetricsRecorder
from fairlead_gateway.telemetry.handoff_record import BYPASSED, DONE, FAILED, HandoffRecord, PrefillAttempt
from fairlead_gateway.worker.disaggregation import kv_connectors as plan
from fairlead_gateway.worker.disaggregation.kv_connectors import Handoff
from fairlead_gateway.worker.disaggregation.transfer_estimator import TransferEstimator
from fairlead_gateway.worker.dispatch.router_registry import RouterRegistry
from fairlead_gateway.worker.observability.trace_record import PREFILL
from fairlead_gateway.worker.openai.json_edit import prepend_members, set_members
from fairlead_gateway.worker.openai.request import ModelRequest
from fairlead_gateway.worker.openai.schemas import GenerationFields
from fairlead_gateway.worker.openai.served_name import body_with_model
from fairlead_gateway.worker.request_context import RequestContext
from fairlead_gateway.worker.resilience.poison_requests import PoisonRequestGuard
from fairlead_gateway.worker.resilience.retry import AttemptFailure
from fairlead_gateway.worker.upstream.connection import ConnectionPool, UpstreamError
from fairlead_gateway.worker.upstream.engine_call import EngineCallFailed, call_engine
from fairlead_gateway.worker.upstream.request_encoder import encode_request
from fairlead_gateway.worker.upstream.response import EngineResponse

_MAX_PREFILL_ATTEMPTS = 2
_QUARANTINED = "quarantined"
_BOOTSTRAP_ROOM_COUNT = 1 << 63
_NO_IDS: Final[frozenset[str]] = frozenset()
_EXPIRED = ("expired", "the blocks are not kept any longer")


class PrefillCoordinator:
    """``decoding`` and ``prefilling`` are the routers of the two groups; ``draw`` gives numbers from 0 to 1."""

    def __init__(
        self,
        *,
        decode_routers: RouterRegistry,
        prefill_routers: RouterRegistry,
        pool: ConnectionPool,
        telemetry: MetricsRecorder,
        clock: Clock,
        limits: Limits,
        poison_guard: PoisonRequestGuard,
        random: Callable[[], float],
    ) -> None:
        self._decode_routers = decode_routers
        self._prefill_routers = prefill_routers
        self._pool = pool
        self._telemetry = telemetry
        self._clock = clock
        self._limits = limits
        self._poison_guard = poison_guard
        self._random = random
        self._suspects: dict[tuple[str, str | None], float] = {}
        self._engine_ids: dict[str, str] = {}
        self._concurrent_prefills: set[asyncio.Task[None]] = set()
        self._transfer_estimator = TransferEstimator(limits)

    def close(self) -> None:
        """Cut the prefills whose answers nobody waits for."""
        for task in self._concurrent_prefills:
            task.cancel()

    def retain(self, models: Collection[str]) -> None:
        """The others have left."""
        self._transfer_estimator.retain(models)

    def has_prefill_instances(self, key: str) -> bool:
        """Whether the model has engines that only prefill."""
        return self._prefill_routers.has_instances(key)

    def choose_decode_instance(self, context: RequestContext, excluded: frozenset[str], now: float) -> Decision:
        """Which engine answers. Raises NoInstance when none is ready."""
        if context.preselected is not None:
            judged, context.preselected = context.preselected, None
            return judged
        unusable = excluded if context.handoff is None else excluded | self.incompatible_instances(context, excluded)
        # A prompt is seen once: where it was decided who computes it, an engine to answer it was chosen before.
        asking = context.handoff_record is not None and context.handoff_record.placement is not None
        avoid = context.full_instances if not context.failures else _NO_IDS
        decision = self._decode_routers.choose(
            context.request.model_key, context.route_request, now, unusable | avoid, preview=asking
        )
        if avoid and decision.chosen is None:
            decision = self._decode_routers.choose(
                context.request.model_key, context.route_request, now, unusable, preview=asking
            )
        return decision

    async def prefill_remotely(self, context: RequestContext) -> None:
        """Have the prompt prefilled elsewhere, if that is worth it and works; ``job`` says afterwards what happened. Raises
        NoInstance when no engine could answer, Quarantined when engines died of it."""
        key = context.request.model_key
        if not self.has_prefill_instances(key):
            return
        if self._decode_routers.router(key) is None:
            return
        record = context.handoff_record = HandoffRecord()
        against = plan.ineligible_reason(context.request.fields, context.request.body)
        if against is not None:
            self._record_end(context, BYPASSED, against[0], f"no hand-off: {against[1]}")
            return
        began = self._clock.now()
        judged = self.choose_decode_instance(context, _NO_IDS, began)
        if judged.chosen is None:
            return
        decided = record.placement = self.place_prefill(context.request, context.route_request, judged.chosen, began)
        if decided.rule in LOCAL_RULES:
            context.preselected = judged
            self._record_end(context, BYPASSED, decided.rule, f"no hand-off: {decided.reason}")
            return
        word, why = await self._prefill(context, record)
        record.waited_seconds = self._clock.now() - began
        if context.handoff is None:
            self._record_end(context, FAILED, word, f"no hand-off: {why}")
            if word == _QUARANTINED:
                raise QuarantinedRequest(self._limits.quarantine_seconds)
        else:
            record.message = context.handoff.description

    def place_prefill(self, request: ModelRequest, route: RouteRequest, chosen: str, now: float) -> Decision:
        """Who computes the prompt, if ``chosen``, which is ready, is to answer it. Nothing is remembered of it."""
        key, there = request.model_key, None
        serving, prefilling = self._decode_routers.router(key), self._prefill_routers.router(key)
        here = None if serving is None else serving.prefill_option(route, chosen, now)
        assert here is not None
        try:
            best = self._prefill_routers.choose(
                key, route, now, self._unusable_prefill_instances(key), preview=True
            ).chosen
        except NoReadyInstance:
            best = None
        if prefilling is not None and best is not None:
            there = prefilling.prefill_option(route, best, now)
        objectives = request.model.objectives
        return place_prefill(
            here,
            there,
            itl_seconds=objectives.itl_seconds,
            ttft_seconds=objectives.ttft_limit_seconds(here.prompt_tokens),
            transfer_seconds=self._transfer_estimator.predict_seconds(key, here.prompt_tokens),
            min_remote_tokens=self._limits.handoff_min_tokens,
        )

    async def _prefill(self, context: RequestContext, record: HandoffRecord) -> tuple[str, str]:
        """Fill ``job.handoff``, or say in one word and in several why not."""
        key = context.request.model_key
        excluded = self._unusable_prefill_instances(key)
        word, why = "no-prefill-instance", "no prefill instance is ready and trusted"
        for _ in range(_MAX_PREFILL_ATTEMPTS):
            try:
                decision = self._prefill_routers.choose(key, context.route_request, self._clock.now(), excluded)
            except NoReadyInstance:
                break
            instance = (
                self._prefill_routers.ready_instance(key, decision.chosen) if decision.chosen is not None else None
            )
            if instance is None:
                break
            excluded |= {instance.id}
            made = PrefillAttempt(instance.id, decision, self._clock.now())
            record.attempts.append(made)
            try:
                context.handoff = await self._prefill_on(context, instance, made)
                break
            except EngineCallFailed as failure:
                word, why = f"prefill-{failure.cause}", f"{instance.id} did not prefill: {failure.reason}"
                if self._on_call_failed(context, made, failure):
                    return _QUARANTINED, f"{why}, not the first one that broke off on it"
                if failure.is_final:
                    break
        return word, why

    def incompatible_instances(self, context: RequestContext, excluded: frozenset[str]) -> frozenset[str]:
        """The instances that cannot take this hand-off; where none could, the hand-off is given up instead."""
        handoff = context.handoff
        if handoff is None:
            return frozenset()
        now = self._clock.now()
        ready = self._decode_routers.ready_instances(context.request.model_key)
        unfit = frozenset(one for one, found in ready.items() if not self._is_pair_usable(handoff.prefill, found, now))
        if now < handoff.expires_at and not ready.keys() <= unfit | excluded:
            return unfit
        if now < handoff.expires_at:
            self._abandon_transfer(context, "no-decode-instance", "no instance can take it")
        else:
            self._abandon_transfer(context, *_EXPIRED)
        return frozenset()

    def annotate_decision(self, context: RequestContext, decision: Decision) -> Decision:
        """The decision with both legs in its reason."""
        if context.handoff_record is None:
            return decision
        return decision.with_text(reason=f"{context.handoff_record.message}; {decision.reason}")

    def request_body(self, context: RequestContext) -> bytes:
        """The body of this attempt."""
        handoff = context.handoff
        if handoff is None:
            return context.request.body
        if self._clock.now() >= handoff.expires_at:
            self._abandon_transfer(context, *_EXPIRED)
            return context.request.body
        return set_members(context.request.body, handoff.fields)

    def add_kv_source(self, context: RequestContext, body: bytes, source: str) -> bytes:
        """The body that also says whose cache a part of the prompt is in; as it is where that instance has left, or nothing is
        generated. A peer that does not have it any more costs nothing: the engine then computes it."""
        found = self._decode_routers.ready_instance(context.request.model_key, source)
        if (
            found is None
            or found.pull is None
            or context.handoff is not None
            or not isinstance(context.request.fields, GenerationFields)
        ):
            return body
        return prepend_members(
            body,
            plan.kv_source_fields(found.pull.address, f"{context.id}-{int(self._random() * _BOOTSTRAP_ROOM_COUNT):x}"),
        )

    @contextmanager
    def first_event_deadline(
        self, context: RequestContext, instance: Instance, engine_response: EngineResponse
    ) -> Iterator[None]:
        """While the first event of a hand-off is awaited: seconds, and not for ever."""
        handoff = context.handoff
        if handoff is None:
            yield
            return
        handoff.decode_id = instance.id
        context.kv_transferred = True
        if handoff.prefill.transfer == "sglang":
            self._start_concurrent_prefill(context, handoff)
        seconds = plan.first_event_timeout_seconds(context.request.stream, context.request.max_tokens, self._limits)
        timer = self._pool.loop.call_later(seconds, _expire, engine_response)
        try:
            yield
        finally:
            timer.cancel()

    def on_decode_accepted(self, context: RequestContext) -> None:
        """The decode engine answers: the hand-off has served its one attempt."""
        if context.handoff is not None:
            assert context.handoff_record is not None
            assert context.handoff_record.placement is not None
            self._observe_transfer(context, context.handoff, context.handoff_record.placement)
            self._record_end(context, DONE, context.handoff_record.placement.rule, context.handoff_record.message)
            context.handoff = None

    def _observe_transfer(self, context: RequestContext, handoff: Handoff, decided: Decision) -> None:
        """Learn what KV takes: of streams only, and where the prefill was over before."""
        sent, step = context.dispatched_at, decided.inputs.get("step_seconds")
        if not context.request.stream or sent is None or handoff.prefill.transfer == "sglang":
            return
        seconds = self._clock.now() - sent - (2.0 * step.value if step is not None and step.value is not None else 0.0)
        self._transfer_estimator.observe(
            context.request.model_key,
            self._decode_routers.prompt_tokens(context.request.model_key, context.route_request),
            seconds,
        )

    def retry_without_transfer(self, context: RequestContext, failure: AttemptFailure) -> bool:
        """Whether an attempt failed over the hand-off: then the same request goes again without it, there or elsewhere."""
        handoff = context.handoff
        if handoff is None or handoff.decode_id is None:
            return False
        context.handoff, context.kv_transferred = None, False
        self._mark_pair_suspect(handoff.prefill.id, handoff.decode_id)
        words = f"the hand-off from {handoff.prefill.id} failed on {handoff.decode_id} ({failure.cause}), plain now"
        self._record_end(context, FAILED, f"decode-{failure.cause}", words)
        return not failure.crashed and failure.was_sent and not failure.is_overload

    # One prefill ---------------------------------------------------------------------------------------------------------

    async def _prefill_on(self, context: RequestContext, instance: Instance, made: PrefillAttempt) -> Handoff:
        """Prefill on one instance. Raises LegFailed."""
        words = f"prefill on {instance.id} ({made.decision.rule}: {made.decision.reason})"
        if instance.transfer == "sglang":
            room = int(self._random() * _BOOTSTRAP_ROOM_COUNT)
            fields = plan.sglang_fields(plan.bootstrap_url(instance), room)
            return Handoff(instance, fields, self._clock.now() + self._limits.handoff_lease_seconds, f"{words} at once")
        if instance.transfer == "mooncake":
            transfer_id = f"xfer-{context.id}-{int(self._random() * _BOOTSTRAP_ROOM_COUNT):x}"
            engine_id = await self._engine_id(instance)
            asked = plan.mooncake_prefill_fields(transfer_id)
            made.started_at = self._clock.now()
            await self._call_prefill(context, instance, asked)
            found: Mapping[str, bytes] | None = plan.mooncake_decode_fields(
                transfer_id, engine_id, plan.bootstrap_url(instance)
            )
        else:
            found = plan.nixl_decode_fields(await self._call_prefill(context, instance, plan.nixl_prefill_fields()))
        if found is None:
            raise EngineCallFailed(
                "its answer does not say where the blocks are", cause="no-blocks", is_suspicious=False
            )
        now = self._clock.now()
        self._record_attempt_end(context, made, OK)
        words += f" in {(now - made.started_at) * 1e3:.0f} ms"
        return Handoff(instance, found, now + self._limits.handoff_lease_seconds, words)

    async def _call_prefill(self, context: RequestContext, instance: Instance, fields: Mapping[str, bytes]) -> bytes:
        """Ask for the prefill and wait for its end: the answer's body. The router knows of it meanwhile."""
        body = plan.prefill_body(context.request.fields, context.request.body, fields)
        if instance.served_name is not None:
            body = body_with_model(instance.served_name, body)
        head = context.http_request.head
        more = context.trace.start_span(instance, PREFILL, "") if context.trace is not None else ""
        message = encode_request(
            instance.url, head.path, head, body, context.http_request.id, dp_rank=instance.dp_rank, extra_headers=more
        )
        router = self._prefill_routers.router(context.request.model_key)
        if router is None:
            raise EngineCallFailed("the model has left", cause="model-left", is_suspicious=False)
        router.on_dispatch(context.route_request, instance.id, self._clock.now())
        done = False
        try:
            found = await call_engine(
                self._pool, instance.url, message, self._limits.handoff_prefill_seconds, self._limits
            )
            done = True
            return found
        finally:
            (router.on_finish if done else router.on_abandoned)(context.route_request.id, self._clock.now())

    def _on_call_failed(self, context: RequestContext, made: PrefillAttempt, failure: EngineCallFailed) -> bool:
        """Take down that an engine did not prefill; whether no engine should get the prompt any more."""
        self._record_attempt_end(context, made, failure.cause)
        if failure.is_suspicious:
            self._mark_pair_suspect(made.instance_id, None)
        made.crashed = failure.crashed
        if not made.crashed:
            return False
        print_ = context.body_fingerprint(self._poison_guard.fingerprint)
        return self._poison_guard.on_crash(print_, made.instance_id, made.started_at, self._clock.now())

    def _start_concurrent_prefill(self, context: RequestContext, handoff: Handoff) -> None:
        """SGLang's prefill runs beside the decode; ending it early would abort the room, so it runs to its end."""

        assert context.handoff_record is not None
        made = context.handoff_record.attempts[-1]
        made.started_at = self._clock.now()

        async def prefill() -> None:
            try:
                await self._call_prefill(context, handoff.prefill, handoff.fields)
                self._record_attempt_end(context, made, OK)
            except EngineCallFailed as failure:
                self._on_call_failed(context, made, failure)

        task = self._pool.loop.create_task(prefill())
        self._concurrent_prefills.add(task)
        task.add_done_callback(self._concurrent_prefills.discard)

    async def _engine_id(self, instance: Instance) -> str:
        """Mooncake's name for an engine, asked once for each start of it. Raises LegFailed."""
        known = self._engine_ids.get(instance.id)
        if known is not None:
            return known
        address = plan.bootstrap_url(instance)
        message = [f"GET /query HTTP/1.1\r\nhost: {address.partition('://')[2]}\r\n\r\n".encode("latin-1")]
        try:
            answer = await call_engine(self._pool, address, message, self._limits.handoff_query_seconds, self._limits)
        except EngineCallFailed as failure:
            failure.crashed = False  # it has not met the prompt
            raise
        engine_id = plan.parse_mooncake_engine_id(answer, instance.dp_rank or 0)
        if engine_id is None:
            raise EngineCallFailed("its bootstrap server names no engine", cause="no-engine-name", is_suspicious=True)
        self._engine_ids[instance.id] = engine_id
        return engine_id

    # Trust ---------------------------------------------------------------------------------------------------------------

    def _unusable_prefill_instances(self, key: str) -> frozenset[str]:
        """Prefill instances that are suspect, or whose work no ready instance could take."""
        now = self._clock.now()
        decodes = self._decode_routers.ready_instances(key).values()
        return frozenset(
            one
            for one, found in self._prefill_routers.ready_instances(key).items()
            if self._is_suspect(one, None, now)
            or not any(self._is_pair_usable(found, decode, now) for decode in decodes)
        )

    def _mark_pair_suspect(self, prefill: str, decode: str | None) -> None:
        """Leave an instance or a pair alone for a while; what an engine is called is asked anew, it may have been restarted."""
        now = self._clock.now()
        self._suspects = {pair: until for pair, until in self._suspects.items() if until > now}
        self._suspects[prefill, decode] = now + self._limits.handoff_suspect_seconds
        self._engine_ids.pop(prefill, None)

    def _is_pair_usable(self, prefill: Instance, decode: Instance, now: float) -> bool:
        """Whether one can hand over to the other."""
        return decode.transfer == prefill.transfer and not self._is_suspect(prefill.id, decode.id, now)

    def _is_suspect(self, prefill: str, decode: str | None, now: float) -> bool:
        return self._suspects.get((prefill, decode), now) > now

    # What became of it ---------------------------------------------------------------------------------------------------

    def _abandon_transfer(self, context: RequestContext, word: str, why: str) -> None:
        self._record_end(context, FAILED, word, f"no hand-off after all: {why}")
        context.handoff = None

    def _record_end(self, context: RequestContext, outcome: str, reason: str, words: str) -> None:
        assert context.handoff_record is not None
        context.handoff_record.outcome, context.handoff_record.reason, context.handoff_record.message = (
            outcome,
            reason,
            words,
        )
        kept = None
        if outcome != DONE and context.handoff_record.prefilled_locally:
            kept = self._decode_routers.prompt_tokens(context.request.model_key, context.route_request)
        self._telemetry.record_handoff(context.request.model_key, outcome, reason, kept)

    def _record_attempt_end(self, context: RequestContext, made: PrefillAttempt, result: str) -> None:
        made.seconds, made.result = self._clock.now() - made.started_at, result
        self._telemetry.record_prefill(context.request.model_key, made.instance_id, made.seconds, result)
        if context.trace is not None:
            context.trace.finish_span(PREFILL, None if result == OK else result)


def _expire(engine_response: EngineResponse) -> None:
    engine_response.on_error(UpstreamError("timeout"))

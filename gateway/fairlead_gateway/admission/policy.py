"""When a request goes to an engine: at once, later, or not at all.

**At once** unless there is a reason to hold. The gate is open while (a) all requests want the same (one objective, one tenant,
one tier: then any order is as good as that of arrival, and the engine's own queue is as good as ours) and no engine's memory is
near its end, or (b) some engine has room. Holding has a price (an engine that has finished waits for the next request to travel),
and by itself gains nothing where routing is right; it pays where somebody should overtake, and where an engine would put requests
back.

**Room** of an engine: what waits there for its first token fills less than ``ROOM_STEPS`` of one step, and the request's memory
fits at the worst moment still to come (``memory``). A long prompt (``pools``) has room where nothing waits at all: an engine puts
what waits into one step, and short prompts beside the first chunk of a long one get their first token when all of that step is
computed (at a load of 0.95 to 1 that had cost the short class 6 to 12 of a hundred). So that short ones cannot fill every engine up
again for ever, the one with the least before it is kept for the long prompt whose turn it is, and works off what it has. Long
prompts have room on as many engines as short ones leave them. Who goes next is ``order``'s to say. If the memory of who is next fits
nowhere, nobody goes: a request that needs much would otherwise be passed by small ones for ever, and engines that are not refilled
drain towards it (Llumnix counts the head of the queue as load for the same reason).

**Not at all**: a sheddable request whose objective is beyond what the line's pace promises (429), anybody when the line is at its
limits, and who has waited as long as anybody may (503; a sheddable one at three objectives, where another would go before all).
Each says when to come back, by the line's pace.

Pure: the caller says what time it is and what the engines have before them, in any of the gateway, the simulator and tests.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fairlead.limits import Limits
from fairlead_gateway.admission.backlog_decay import BacklogDecay
from fairlead_gateway.admission.drain_rate import DrainRate
from fairlead_gateway.admission.kv_capacity import KvCapacityPlanner
from fairlead_gateway.admission.length_classes import LengthClasses
from fairlead_gateway.admission.output_lengths import OutputForecast, OutputLengths
from fairlead_gateway.admission.request_queue import NextRequest, QueuedRequest, RequestQueue
from fairlead_gateway.routing.request import RouteRequest

MAX_WAITING_STEP_SHARE: Final = 0.3
POLL_SECONDS: Final = 0.02
"""How often those who drive a gate look at what is held when nothing happens: others' work ends without a word."""
OBJECTIVE_SPREAD_RATIO: Final = 1.5
"""Objectives that far apart are different ones."""
ALL_LEARNED_ANSWERS: Final = 1_000
LEARNED_ANSWER_INTERVAL: Final = 8
"""So many answers are counted each; then one of so many, which is enough for shares and spares most requests the counting."""
_MAX_LENGTH_CLASSES: Final = 256
_NOBODY: Final[frozenset[str]] = frozenset()
_LONG_CLOSED: Final = (True,)


class AdmissionAction(StrEnum):
    """What becomes of a request that arrives."""

    ADMIT = "pass"
    QUEUE = "hold"
    REFUSE = "refuse"


@dataclass(slots=True)
class EngineLoad:
    """A ready engine: prefill seconds before it (all gateways'), seconds that a full step of prefill takes, memory in tokens
    (None: not known), and tokens that others than this process have there."""

    id: str
    backlog_seconds: float
    step_seconds: float
    kv_tokens: float | None = None
    other_tokens: float = 0.0


@dataclass(slots=True)
class AdmissionVerdict:
    """``full`` are the engines that it should not go to. Of a refusal: ``retry_after`` in seconds; ``shed`` for its tier's sake."""

    action: AdmissionAction
    rule: str
    reason: str
    full_instances: frozenset[str] = _NOBODY
    retry_after: float | None = None
    is_shed: bool = False


@dataclass(slots=True)
class Admitted:
    """Who goes now, by which rule of ``order``, past which engines, and how long it was held."""

    id: str
    rule: str
    reason: str
    full_instances: frozenset[str]
    waited_seconds: float

    def describe(self) -> str:
        """As the decision says it."""
        return f"held for {self.waited_seconds:.3f} s ({self.rule}: {self.reason})"


@dataclass(slots=True)
class AdmissionRequest:
    """A request before the gate. ``kind`` is the class whose answers are alike, ``sheddable`` what its tier says."""

    queued: QueuedRequest
    request: RouteRequest
    prompt_tokens: float
    length_class: Hashable = None
    sheddable: bool = False


_ADMIT_OPEN: Final = AdmissionVerdict(AdmissionAction.ADMIT, "open", "nobody waits, and there is no reason to hold")


class AdmissionPolicy:
    """Of one model, in one process. ``line`` is another order to compare with; without
    ``pooled`` long prompts go as others do."""

    def __init__(self, limits: Limits, queue: RequestQueue | None = None, *, separate_long: bool = True) -> None:
        self._limits = limits
        self._queue = RequestQueue() if queue is None else queue
        self._separate_long = separate_long
        self._requests: dict[str, AdmissionRequest] = {}
        self._bytes = 0
        self._length_classes = LengthClasses()
        self._drain_rate = DrainRate()
        self._output_lengths = OutputLengths(max_classes=_MAX_LENGTH_CLASSES)
        self._forecast = OutputForecast(self._output_lengths)
        self._answers = 0
        self._first_class: tuple[Hashable, int] | None = None
        self._has_several_classes = False
        self.kv_capacity = KvCapacityPlanner(self._forecast.expected_remaining)
        self._backlog_decay = BacklogDecay()

    def engine_load(
        self,
        id: str,
        reported_seconds: float,
        step_seconds: float,
        kv_tokens: float | None,
        other_tokens: float,
        now: float,
    ) -> EngineLoad:
        """An engine as the gate sees it ``now``; ``told_seconds`` of prefill there have had no first token yet."""
        return EngineLoad(
            id, self._backlog_decay.remaining_seconds(id, reported_seconds, now), step_seconds, kv_tokens, other_tokens
        )

    # Those that come -----------------------------------------------------------------------------------------------------

    def admit(self, request: AdmissionRequest, engines: Sequence[EngineLoad], now: float) -> AdmissionVerdict:
        """A request came. It is held from here on where the verdict says so."""
        return self.admit_now(request, engines, now) or self.enqueue(request, engines, now)

    def admit_now(
        self, request: AdmissionRequest, engines: Sequence[EngineLoad], now: float
    ) -> AdmissionVerdict | None:
        """A request came: it goes at once, or None."""
        queued = request.queued
        queued.is_long = self._length_classes.classify(queued.objective_seconds, queued.prefill_seconds, now)
        return None if self._requests else self._admit_without_queue(request, engines, now)

    def enqueue(self, request: AdmissionRequest, engines: Sequence[EngineLoad], now: float) -> AdmissionVerdict:
        """A request that came and did not go at once is held, or refused."""
        queued = request.queued
        refusal = self._refusal(request, len(engines), now)
        if refusal is not None:
            return refusal
        if not self._requests:
            self._drain_rate.start(now)
        self._requests[queued.id] = request
        self._bytes += queued.body_bytes
        self._queue.add(queued)
        rule = "held-starting" if not engines else "held"
        return AdmissionVerdict(AdmissionAction.QUEUE, rule, self._queue_reason(request, engines, now))

    def is_order_relevant(self) -> bool:
        """Whether requests differ in what they may expect, so that order matters."""
        return self._has_several_classes or self._length_classes.objective_spread >= OBJECTIVE_SPREAD_RATIO

    def _admit_without_queue(
        self, request: AdmissionRequest, engines: Sequence[EngineLoad], now: float
    ) -> AdmissionVerdict | None:
        request_class = (request.queued.tenant, request.queued.tier)
        if self._first_class is None:
            self._first_class = request_class
        elif request_class != self._first_class:
            self._has_several_classes = True
        if not engines:
            return None
        full = self._full_instances(request, engines, now)
        if not full:
            return _ADMIT_OPEN
        if len(full) < len(engines):
            return AdmissionVerdict(
                AdmissionAction.ADMIT, "room", f"{len(engines) - len(full)} of {len(engines)} engines have room", full
            )
        return None

    def _full_instances(
        self, request: AdmissionRequest, engines: Sequence[EngineLoad], now: float, reserved: str | None = None
    ) -> frozenset[str]:
        """The engines that have no room for it."""
        ordered, long, full = self.is_order_relevant(), self._has_own_engines(request.queued), []
        if long and self._is_closed_to_long(engines, now):
            return frozenset(engine.id for engine in engines)
        for engine in engines:
            if (
                (ordered and not _has_room(engine, long=long))
                or engine.id == reserved
                or self._lacks_memory(request, engine, now)
            ):
                full.append(engine.id)
        return frozenset(full) if full else _NOBODY

    def _lacks_memory(self, request: AdmissionRequest, engine: EngineLoad, now: float) -> bool:
        if engine.kv_tokens is None:
            return False
        return (
            self.kv_capacity.missing_tokens(
                engine.id,
                engine.kv_tokens,
                request.request,
                request.prompt_tokens,
                request.length_class,
                now,
                tier=request.queued.tier,
                other_tokens=engine.other_tokens,
            )
            > 0.0
        )

    def _has_own_engines(self, queued: QueuedRequest) -> bool:
        """Whether it is a long prompt, where those have engines of their own."""
        return queued.is_long and self._separate_long and self.is_order_relevant()

    def _is_closed_to_long(self, engines: Sequence[EngineLoad], now: float) -> bool:
        """Whether as many engines are at long prompts as may be."""
        boundary = self._length_classes.boundary_seconds
        busy = sum([one.backlog_seconds > boundary for one in engines])
        return busy >= self._length_classes.max_long_engines(
            len(engines), now, short_late=self._queue.has_late(long=False)
        )

    def _queue_reason(self, request: AdmissionRequest, engines: Sequence[EngineLoad], now: float) -> str:
        if not engines:
            return "no engine is ready; it goes when one is"
        if len(self._requests) > 1:
            return f"{len(self._requests) - 1} are held before it or beside it"
        if self._has_own_engines(request.queued) and self._is_closed_to_long(engines, now):
            return f"as many of {len(engines)} engines are at long prompts as the short ones leave them"
        if any(self._lacks_memory(request, one, now) for one in engines):
            return f"its answer is not expected to fit the memory of any of {len(engines)} engines that have room"
        least = min(one.backlog_seconds for one in engines)
        return f"all {len(engines)} engines are busy, the least for {least:.2f} s; who goes next is chosen here"

    # Those that do not -----------------------------------------------------------------------------------------------------

    def expected_wait(self, tier: int, engines: int, now: float) -> float:
        """Seconds until those that are held now, of this tier or a higher one, have gone, by the line's pace."""
        work = sum([one.prefill_seconds for one in self._queue.requests() if one.tier <= tier])
        return work / self._drain_rate.rate(engines, now)

    def _refusal(self, request: AdmissionRequest, engines: int, now: float) -> AdmissionVerdict | None:
        queued, limits = request.queued, self._limits
        if len(self._requests) >= limits.queued_requests or self._bytes + queued.body_bytes > limits.queued_bytes:
            wait = self.expected_wait(queued.tier, engines, now)
            reason = f"{len(self._requests)} requests ({self._bytes:,} bytes) are held already"
            return AdmissionVerdict(
                AdmissionAction.REFUSE, "line-full", reason, retry_after=wait, is_shed=request.sheddable
            )
        if not request.sheddable or not engines:
            return None
        wait = self.expected_wait(queued.tier, engines, now)
        spare = queued.objective_seconds - queued.prefill_seconds
        if wait <= spare:
            return None
        reason = (
            f"{wait:.1f} s of work is held before it, and its first token is due in {queued.objective_seconds:.1f} s"
        )
        return AdmissionVerdict(
            AdmissionAction.REFUSE, "shed", reason, retry_after=wait - max(0.0, spare), is_shed=True
        )

    def take_expired(self, engines: int, now: float, since: float = -math.inf) -> list[tuple[str, AdmissionVerdict]]:
        """Those that are held no longer: who has waited as long as anybody may, and the sheddable that would otherwise soon go
        before higher tiers for being overdue. Nobody's time counts before ``since``, when there was no engine yet."""
        before = now - self._limits.queue_seconds
        expired = [
            request
            for request in self._requests.values()
            if max(request.queued.arrived_at, since) <= before
            or (request.sheddable and request.queued.overdue_at <= now)
        ]
        refusals = []
        for request in expired:
            queued = request.queued
            self.remove(queued.id)
            wait = self.expected_wait(queued.tier, engines, now)
            reason = f"it was held for {now - queued.arrived_at:.1f} s and no engine had room for it"
            rule = "shed-late" if request.sheddable else "held-too-long"
            refusals.append(
                (
                    queued.id,
                    AdmissionVerdict(AdmissionAction.REFUSE, rule, reason, retry_after=wait, is_shed=request.sheddable),
                )
            )
        return refusals

    def remove(self, request_id: str) -> bool:
        """Its client has gone, or its time is over. False when it is not held."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return False
        self._bytes -= request.queued.body_bytes
        self._queue.remove(request_id)
        return True

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def held_bytes(self) -> int:
        """Of the bodies that are held."""
        return self._bytes

    # Those that go -------------------------------------------------------------------------------------------------------

    def release_next(self, engines: Sequence[EngineLoad], now: float) -> Admitted | None:
        """The next of those that are held, if some engine has room for it. Ask again once it has been sent."""
        if not self._requests or not engines:
            return None
        ordered = self.is_order_relevant()
        if ordered and not any(_has_room(one, long=False) for one in engines):
            return None
        candidate, reserved = self._queue.peek(now), None
        if candidate is not None and self._has_own_engines(candidate.request):
            if self._is_closed_to_long(engines, now):
                candidate = self._queue.peek(now, _LONG_CLOSED)
            elif not any(_has_room(one, long=True) for one in engines):
                reserved = min(engines, key=_backlog_seconds).id
                candidate = self._queue.peek(now, _LONG_CLOSED)
        if candidate is None:
            return None
        request = self._requests[candidate.request.id]
        full = self._full_instances(request, engines, now, reserved)
        if len(full) == len(engines):
            return None
        return self._take(candidate, full, now)

    def _take(self, candidate: NextRequest, full: frozenset[str], now: float) -> Admitted:
        queued = candidate.request
        self._queue.take(candidate)
        self._drain_rate.on_dispatch(queued.prefill_seconds, now)
        del self._requests[queued.id]
        self._bytes -= queued.body_bytes
        return Admitted(queued.id, candidate.rule, candidate.reason, full, now - queued.arrived_at)

    # What engines do -----------------------------------------------------------------------------------------------------

    def on_finish(
        self, request_id: str, length_class: Hashable, prompt_tokens: float, output_tokens: int | None, now: float
    ) -> None:
        """An answer is over; ``output_tokens`` None when it was cut, or its engine did not tell."""
        self.kv_capacity.on_finish(request_id, now, output_tokens)
        if not output_tokens:
            return
        self._answers += 1
        if self._answers <= ALL_LEARNED_ANSWERS or self._answers % LEARNED_ANSWER_INTERVAL == 0:
            self._output_lengths.learn(length_class, prompt_tokens, output_tokens, now)


def _has_room(engine: EngineLoad, *, long: bool) -> bool:
    """Whether it can begin one more soon, or a long prompt at once."""
    return (
        engine.backlog_seconds <= 0.0 if long else engine.backlog_seconds < MAX_WAITING_STEP_SHARE * engine.step_seconds
    )


def _backlog_seconds(engine: EngineLoad) -> float:
    return engine.backlog_seconds

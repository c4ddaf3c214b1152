"""The admission policy: a request is admitted, queued, or refused by the limits of the queue.

**Admitted** now, if no request is queued and an instance has room. If all requests are alike (one
TTFT target, tenant and tier), arrival order is as good as any, and only the memory must suffice.

**Room**: prefill that waits at an instance fills less than `MAX_WAITING_STEP_SHARE` of one step,
and the request's memory fits at the peak (`kv_capacity`). A long prompt has room
only where nothing waits. So that short prompts do not fill every instance, the one with the least
backlog is reserved for the next long prompt. If callers are distinguished, a sequence is free,
or fewer than `REQUESTS_AHEAD` wait inside and the caller had a small share.

**Queued**: the order is that of `request_queue`. If the memory of the next request fits nowhere, no
request is released. Otherwise, small requests would pass a large one for ever. Instances that get
nothing drain until it fits (Llumnix counts the head of the queue as load for the same reason).
Other callers wait for that a few seconds only.

**Refused** with a `Retry-After` from the drain rate, and with 429 if sheddable, else 503:

- a sheddable request that cannot meet its objective at the drain rate (429),
- the newest request of the lowest tier's caller with most, if the queue is full,
- a request that waited too long (503); for a sheddable one, that is three times its objective.

Why: queueing has a price, since an engine that has finished waits for the next request to arrive.
It gains nothing where routing is right. It pays where order matters, and where engines would
preempt. An engine puts waiting prompts into one step. If a long prompt's first chunk is in it,
short ones get their first token when the whole step is computed. At a load of 0.95 to 1 that cost
the short class 6 to 12 %.

Pure: callers pass the time and the load, in gateway, simulator and tests.

The speed at which a queue drains. `Retry-After` is computed from it.

The drain rate is the engine time of the requests dispatched from the queue, divided by the time for
which any request was queued. Both sums decay over 30 s. Until the rate is known, each
ready instance is assumed to do one second of work per second.

An estimate of the prefill backlog of instances between reports.

A stream reports its first token. A plain response reports nothing before it is complete, and the
requests of other processes are known only as a sum. So a backlog also decays, at `DECAY_RATE`
seconds per second. A reported decrease counts at once.

Why: the rate is below that of an idle engine. So an instance does not get the next prompt while it
computes the last one.

A bound on the number of instances that compute long prompts at the same time.

A prompt is *long* if its prefill takes more than half of the tightest TTFT target of the last
minutes. No instance belongs to a class. Only the number of instances with long prompts is bounded,
so that the others are free for short ones.

The bound is the share of long prompts in the work of the last 30 seconds: neither class pays for
the overload of the other. One more instance is allowed until a queued short prompt is too
late: long prompts arrive in bursts, and idle instances are wasted. If the fleet has more instances
than both need, the rest goes to the short prompts. Then long prompts get as many instances as their
work keeps `LONG_UTILIZATION` busy, unless the short ones would keep the rest less than
`SHORT_UTILIZATION` busy.

Why: a short prompt behind a long one waits for all of it, and most queued prompts are short. Fixed
pools are worse: one misses its targets while the other idles. The measure is the highest load at
which both classes meet their targets, with 6,000 requests. Without classes: 0.8 to 0.9 of
capacity, in any order. With instances of their own (`policy`): 0.99 by deadline alone, 1.02 with
order and bound. A bound from the need of short prompts alone starves the long ones near saturation.
The p90 of the short class of LAPS' mix (load 0.7) is compared with a fleet without long prompts.
With the share alone it is 1.4 times as long. With the whole rule it is 1.1 times as long, and long
prompts meet their targets.

Source: LAPS (arXiv 2601.11589) for the two classes and the moving bound. Changed: seconds of the
uncached part instead of tokens, and a bound on what runs instead of a set of instances.
"""

import math
from collections.abc import Hashable, Sequence
from enum import StrEnum
from typing import Final

from fairlead.limits import Limits
from fairlead_gateway.admission.kv_capacity import EngineLoad, KvCapacityPlanner, MemoryHold
from fairlead_gateway.admission.output_lengths import OutputForecast, OutputLengths
from fairlead_gateway.admission.request_queue import CallerBounds, CallerClass, NextRequest, QueuedRequest, RequestQueue
from fairlead_gateway.routing.request import NO_INSTANCES, RouteRequest

LONG_SHARE: Final = 0.5
LONG_UTILIZATION: Final = 0.9
SHORT_UTILIZATION: Final = 0.4
"""Utilization of instances kept for one class. Targets of long prompts allow some waiting."""
_DRAIN_WINDOW_SECONDS: Final = 30.0
_ROLL_SECONDS: Final = 60.0

DECAY_RATE: Final = 0.7
MIN_BACKLOG_SECONDS: Final = 0.005
"""With less, by its profile, an instance answers at once: late binding does not count it as busy.

Why: a wait would cost more than the order of so little work gains.
"""

_LONG_WINDOW_SECONDS: Final = 10.0
_MIN_SECONDS: Final = 1.0

POLL_SECONDS: Final = 0.02
"""Interval of checks without an event: requests of other processes end unseen."""
OBJECTIVE_SPREAD_RATIO: Final = 1.5
"""TTFT targets that differ by this factor make order relevant."""
ALL_LEARNED_ANSWERS: Final = 1_000
LEARNED_ANSWER_INTERVAL: Final = 8
"""The first `ALL_LEARNED_ANSWERS` answers are learned, then one of this number."""
_MAX_LENGTH_CLASSES: Final = 256
_LONG_CLOSED: Final = (True,)
MAX_PASSED_OVER: Final = 8
"""Callers whose requests one check passes over, since each costs a look at all instances."""
Refusals = Sequence[tuple[str, "AdmissionVerdict"]]  # by id of the request


class LengthClasses:
    """The recent work of one model by length class."""

    def __init__(self) -> None:
        self._short_seconds = self._long_seconds = 0.0
        self._updated_at = 0.0
        self._started_at: float | None = None
        self._tightest = self._former_tightest = math.inf
        self._loosest = self._former_loosest = 0.0
        self._rolled_at = 0.0

    def classify(self, objective_seconds: float, prefill_seconds: float, now: float) -> bool:
        """Counts an arrived request; returns True if it is long."""
        if self._started_at is None:
            self._started_at = self._rolled_at = self._updated_at = now
        if now - self._rolled_at >= _ROLL_SECONDS:
            self._former_tightest, self._former_loosest = self._tightest, self._loosest
            self._tightest, self._loosest, self._rolled_at = math.inf, 0.0, now
        self._tightest = min(self._tightest, objective_seconds)
        self._loosest = max(self._loosest, objective_seconds)
        long = prefill_seconds > self.boundary_seconds
        self._fade(now)
        if long:
            self._long_seconds += prefill_seconds
        else:
            self._short_seconds += prefill_seconds
        return long

    @property
    def boundary_seconds(self) -> float:
        """The longest prefill of a short prompt, in seconds; infinite before the first request."""
        return LONG_SHARE * min(self._tightest, self._former_tightest)

    @property
    def objective_spread(self) -> float:
        tightest = min(self._tightest, self._former_tightest)
        return max(self._loosest, self._former_loosest) / tightest if 0.0 < tightest < math.inf else 1.0

    def max_long_engines(self, engines: int, now: float, *, short_late: bool = False) -> int:
        """Returns how many of `engines` instances may compute long prompts at once; at least one.

        short_late: a queued short prompt can no longer meet its TTFT target.
        """
        self._fade(now)
        both = self._short_seconds + self._long_seconds
        if both <= 0.0:
            return engines
        bound = min(engines, round(engines * self._long_seconds / both) + (not short_late))
        window_seconds = (
            0.0
            if self._started_at is None
            else -math.expm1((self._started_at - now) / _DRAIN_WINDOW_SECONDS) * _DRAIN_WINDOW_SECONDS
        )
        if window_seconds > 0.0:  # the decayed sum divided by the window is a rate
            needed = math.ceil(self._long_seconds / window_seconds / LONG_UTILIZATION)
            bound = min(bound, max(needed, engines - round(self._short_seconds / window_seconds / SHORT_UTILIZATION)))
        return max(1, bound)

    def _fade(self, now: float) -> None:
        if now > self._updated_at:
            fade = math.exp((self._updated_at - now) / _DRAIN_WINDOW_SECONDS)
            self._short_seconds *= fade
            self._long_seconds *= fade
            self._updated_at = now


class _Backlog:
    """The backlog of one instance: the last report, the estimated rest, and the time of both."""

    __slots__ = ("at", "estimated_seconds", "reported_seconds")

    def __init__(self, seconds: float, now: float) -> None:
        self.reported_seconds = self.estimated_seconds = seconds
        self.at = now


class BacklogDecay:
    """The backlog of each instance that has any."""

    def __init__(self) -> None:
        self._known: dict[str, _Backlog] = {}

    def remaining_seconds(self, engine: str, reported_seconds: float, now: float) -> float:
        """Returns the estimated seconds of prefill that wait at an instance.

        reported_seconds: prefill sent there that has had no first token.
        """
        known = self._known.get(engine)
        if reported_seconds <= 0.0:
            if known is not None:
                del self._known[engine]
            return 0.0
        if known is None:
            self._known[engine] = _Backlog(reported_seconds, now)
            return reported_seconds
        decayed = max(0.0, known.estimated_seconds - DECAY_RATE * (now - known.at))
        left = min(reported_seconds, decayed + max(0.0, reported_seconds - known.reported_seconds))
        known.reported_seconds, known.estimated_seconds, known.at = reported_seconds, left, now
        return left


class DrainRate:
    """The drain rate of one queue."""

    def __init__(self) -> None:
        self._work = 0.0
        self._queued_seconds = 0.0
        self._updated_at = 0.0

    def start(self, now: float) -> None:
        """Called when the queue becomes non-empty: the time before that does not count."""
        self._updated_at = now

    def on_dispatch(self, prefill_seconds: float, now: float) -> None:
        self._advance(now)
        self._work += prefill_seconds

    def rate(self, engines: int, now: float) -> float:
        """Returns the drain rate: seconds of engine time dispatched per second.

        engines: number of ready instances.
        """
        self._advance(now)
        if self._queued_seconds < _MIN_SECONDS or self._work <= 0.0:
            return float(max(1, engines))
        return self._work / self._queued_seconds

    def _advance(self, now: float) -> None:
        seconds = max(0.0, now - self._updated_at)
        fade = math.exp(-seconds / _LONG_WINDOW_SECONDS)
        self._work *= fade
        self._queued_seconds = self._queued_seconds * fade + _LONG_WINDOW_SECONDS * (1.0 - fade)
        self._updated_at = now


class AdmissionAction(StrEnum):
    """The outcome for a request that arrived."""

    ADMIT = "pass"
    QUEUE = "hold"
    REFUSE = "refuse"


class AdmissionVerdict:
    """The decision on a request.

    - full_instances: instances to avoid.
    - retry_after: seconds; None unless the request is refused.
    - is_shed: refused for its tier.
    - displaced: queued requests of another caller that are refused in place of this one.

    Why no dataclass here: the constructor of one is not compiled.
    """

    __slots__ = ("action", "displaced", "full_instances", "is_shed", "reason", "retry_after", "rule")

    def __init__(
        self,
        action: AdmissionAction,
        rule: str,
        reason: str,
        full_instances: frozenset[str] = NO_INSTANCES,
        retry_after: float | None = None,
        is_shed: bool = False,
    ) -> None:
        self.action = action
        self.rule = rule
        self.reason = reason
        self.full_instances = full_instances
        self.retry_after = retry_after
        self.is_shed = is_shed
        self.displaced: Refusals = ()


class Admitted:
    """A released request: the rule, instances to avoid, and how long it was queued."""

    __slots__ = ("full_instances", "id", "reason", "rule", "waited_seconds")

    def __init__(self, id: str, rule: str, reason: str, full_instances: frozenset[str], waited_seconds: float) -> None:
        self.id = id
        self.rule = rule
        self.reason = reason
        self.full_instances = full_instances
        self.waited_seconds = waited_seconds

    def describe(self) -> str:
        return f"queued for {self.waited_seconds:.3f} s ({self.rule}: {self.reason})"


class AdmissionRequest(QueuedRequest):
    """A request as admission sees it.

    - length_class: class of similar output lengths.
    - sheddable: its tier may be refused early.
    """

    __slots__ = ("length_class", "prompt_tokens", "request", "sheddable")

    def __init__(
        self,
        request: RouteRequest,
        arrived_at: float,
        objective_seconds: float,
        prefill_seconds: float,
        prompt_tokens: float,
        tenant: Hashable = None,
    ) -> None:
        super().__init__(request.id, arrived_at, objective_seconds, prefill_seconds, tenant)
        self.request = request
        self.prompt_tokens = prompt_tokens
        self.length_class: Hashable = None
        self.sheddable = False


_ADMIT_OPEN: Final = AdmissionVerdict(
    AdmissionAction.ADMIT, "open", "no request is queued, and queueing would not help"
)


class AdmissionPolicy:
    """The admission of one model in one process.

    - queue: a queue with another order, for comparisons.
    - separate_long: False treats long prompts like short ones.
    - separate_tenants: False: other tenants and tiers alone are no reason to queue.
    """

    def __init__(self, limits: Limits, queue: RequestQueue | None = None, *, separate_long: bool = True) -> None:
        self._queue = RequestQueue() if queue is None else queue
        self.separate_long, self.separate_tenants = separate_long, True
        self._queue_seconds: float = limits.queue_seconds
        self._requests: dict[str, AdmissionRequest] = {}
        self._bounds = CallerBounds(limits.queued_requests, limits.queued_bytes)
        self.memory_hold = MemoryHold()
        self._length_classes = LengthClasses()
        self._drain_rate = DrainRate()
        self._output_lengths = OutputLengths(max_classes=_MAX_LENGTH_CLASSES)
        self._answers = 0
        self._first_class: tuple[Hashable, int] | None = None
        self._highest_tier = 1 << 30  # that was seen
        self._has_several_classes = False
        self._shed_at = math.inf  # no sheddable request is overdue before
        self.kv_capacity = KvCapacityPlanner(OutputForecast(self._output_lengths))
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
        """Returns the load of an instance.

        reported_seconds: prefill sent there that has had no first token.
        """
        return EngineLoad(
            id, self._backlog_decay.remaining_seconds(id, reported_seconds, now), step_seconds, kv_tokens, other_tokens
        )

    # --- requests that arrive

    def admit(self, request: AdmissionRequest, engines: Sequence[EngineLoad], now: float) -> AdmissionVerdict:
        return self.verdict_without_queue(request, engines, now) or self.enqueue(request, engines, now)

    def verdict_without_queue(
        self, request: AdmissionRequest, engines: Sequence[EngineLoad], now: float
    ) -> AdmissionVerdict | None:
        """Returns the verdict if the request is admitted now, else None.

        To be called once per request: counts its prefill for its length class.
        """
        self._classify(request, now)
        return self.verdict_of_classified(request, engines, now)

    def admits_at_once(self, request: AdmissionRequest, now: float) -> bool:
        """Returns True if any instance may take the request: none is queued, and all are alike.

        To be called once per request, in place of `verdict_without_queue`, where its memory fits
        any instance. If the answer is False, `verdict_of_classified` goes on.

        Why: the loads of the instances say nothing then, and reading them takes time.
        """
        self._classify(request, now)
        if self._requests:
            return False
        self._note_class(request)
        return not self.is_order_relevant()

    def verdict_of_classified(
        self, request: AdmissionRequest, engines: Sequence[EngineLoad], now: float
    ) -> AdmissionVerdict | None:
        return None if self._requests else self._admit_without_queue(request, engines, now)

    def enqueue(
        self, request: AdmissionRequest, engines: Sequence[EngineLoad], now: float, *, explained: bool = True
    ) -> AdmissionVerdict:
        """Queues or refuses a request for which `verdict_without_queue` returned None.

        explained: a verdict to queue it has a reason.
        """
        caller_class = CallerClass(request.tier, request.weight)
        displaced = self._bounds.displaced_by(request.tenant, request.body_bytes, caller_class)
        refusal = self._refusal(request, len(engines), now, is_full=displaced is None)
        if refusal is not None:
            return refusal
        refused = [self._displace(request_id, len(engines), now) for request_id in displaced] if displaced else ()
        if not self._requests:
            self._drain_rate.start(now)
        self._requests[request.id] = request
        if request.sheddable:
            self._shed_at = min(self._shed_at, request.overdue_at)
        self._bounds.add(request.id, request.tenant, request.body_bytes, caller_class)
        self._queue.add(request)
        rule = "held-starting" if not engines else "held"
        reason = self._queue_reason(request, engines, now) if explained else ""
        verdict = AdmissionVerdict(AdmissionAction.QUEUE, rule, reason)
        verdict.displaced = refused
        return verdict

    def is_order_relevant(self) -> bool:
        """Returns True if requests differ in tenant, tier or TTFT target.

        Targets differ if the loosest is at least `OBJECTIVE_SPREAD_RATIO` times the tightest.
        """
        is_mixed = self._has_several_classes and self.separate_tenants
        return is_mixed or self._length_classes.objective_spread >= OBJECTIVE_SPREAD_RATIO

    def _admit_without_queue(
        self, request: AdmissionRequest, engines: Sequence[EngineLoad], now: float
    ) -> AdmissionVerdict | None:
        self._note_class(request)
        if not engines:
            return None
        full = self._full_instances(request, engines, now)
        if not full:
            return _ADMIT_OPEN
        if len(full) < len(engines):
            rooms = f"{len(engines) - len(full)} of {len(engines)} instances have room"
            return AdmissionVerdict(AdmissionAction.ADMIT, "room", rooms, frozenset(full))
        return None

    def _classify(self, queued: QueuedRequest, now: float) -> None:
        if queued.tier < self._highest_tier:
            self._highest_tier = queued.tier
        queued.is_long = self._length_classes.classify(queued.objective_seconds, queued.prefill_seconds, now)

    def _note_class(self, queued: QueuedRequest) -> None:
        if self._has_several_classes:
            return
        request_class = (queued.tenant, queued.tier)
        if self._first_class is None:
            self._first_class = request_class
        elif request_class != self._first_class:
            self._has_several_classes = True

    def _full_instances(
        self, request: AdmissionRequest, engines: Sequence[EngineLoad], now: float, reserved: str | None = None
    ) -> Sequence[str]:
        """Returns the ids of the instances that have no room for the request.

        reserved: an instance that counts as full; None: none does.
        """
        ordered, long = self.is_order_relevant(), self._has_own_engines(request)
        if long and self._is_closed_to_long(engines, now):
            return [engine.id for engine in engines]
        small_share = self._queue.has_small_share(request.tenant)
        full: list[str] | None = None  # most requests find room everywhere
        for engine in engines:
            if (
                (ordered and not engine.has_room(long=long))
                or engine.id == reserved
                or not engine.has_free_sequence(small_share=small_share)
                or self.lacks_memory(request, engine, now)
            ):
                full = full or []
                full.append(engine.id)
        return full or ()

    def lacks_memory(self, request: AdmissionRequest, engine: EngineLoad, now: float) -> bool:
        """Whether the memory of an instance does not suffice for a request until its end."""
        tokens, tier = request.prompt_tokens, request.tier - self._highest_tier
        kv_capacity, length_class = self.kv_capacity, request.length_class
        missing = kv_capacity.missing_tokens(engine, request.request, tokens, length_class, now, tier=tier)
        if missing <= 0.0 or not self._queue.has_small_share(request.tenant):
            return missing > 0.0
        needed = tokens + kv_capacity.expected_output(request.request, tokens, length_class, now)
        return not engine.may_queue_for_memory(needed, missing)

    def _has_own_engines(self, queued: QueuedRequest) -> bool:
        return queued.is_long and self.separate_long and self.is_order_relevant()

    def _is_closed_to_long(self, engines: Sequence[EngineLoad], now: float) -> bool:
        """Returns True if as many instances as allowed compute long prompts."""
        boundary = self._length_classes.boundary_seconds
        busy = sum([engine.backlog_seconds > boundary for engine in engines])
        return busy >= self._length_classes.max_long_engines(
            len(engines), now, short_late=self._queue.has_late(long=False)
        )

    def _queue_reason(self, request: AdmissionRequest, engines: Sequence[EngineLoad], now: float) -> str:
        if not engines:
            return "no instance is ready yet"
        if len(self._requests) > 1:
            return f"{len(self._requests) - 1} other requests are queued"
        if self._has_own_engines(request) and self._is_closed_to_long(engines, now):
            return f"no more of the {len(engines)} instances may compute long prompts at the same time"
        if any(self.lacks_memory(request, engine, now) for engine in engines):
            return f"each of {len(engines)} instances is busy or lacks memory for the expected answer"
        if all(engine.free_sequences <= 0.0 for engine in engines):
            return f"each of {len(engines)} instances computes as many requests as it can at a time"
        least = min(engine.backlog_seconds for engine in engines)
        return f"all {len(engines)} instances are busy, the least for {least:.2f} s"

    # --- requests that are refused

    def expected_wait(self, tier: int, engines: int, now: float) -> float:
        """Returns the seconds until the queued requests of this tier or higher are released."""
        work = sum([engine.prefill_seconds for engine in self._queue.requests() if engine.tier <= tier])
        return work / self._drain_rate.rate(engines, now)

    def _refusal(
        self, request: AdmissionRequest, engines: int, now: float, *, is_full: bool
    ) -> AdmissionVerdict | None:
        if is_full:
            return self._refused_for_bounds(request, engines, now)
        if not request.sheddable or not engines:
            return None
        wait = self.expected_wait(request.tier, engines, now)
        if wait <= (spare := request.objective_seconds - request.prefill_seconds):
            return None
        reason = (
            f"{wait:.1f} s of work is queued before the request, and its first token is due "
            f"in {request.objective_seconds:.1f} s"
        )
        return AdmissionVerdict(
            AdmissionAction.REFUSE, "shed", reason, retry_after=wait - max(0.0, spare), is_shed=True
        )

    def _refused_for_bounds(self, request: AdmissionRequest, engines: int, now: float) -> AdmissionVerdict:
        bounds = self._bounds
        wait = self.expected_wait(request.tier, engines, now)
        reason = f"{bounds.requests} requests ({bounds.body_bytes:,} bytes) are queued already"
        if bounds.has_several_callers:
            reason += f", {bounds.requests_of(request.tenant)} of them of this caller, which has most"
        return AdmissionVerdict(
            AdmissionAction.REFUSE, "line-full", reason, retry_after=wait, is_shed=request.sheddable
        )

    def _displace(self, request_id: str, engines: int, now: float) -> tuple[str, AdmissionVerdict]:
        """Removes a queued request for that of a caller that has less in the queue."""
        verdict = self._refused_for_bounds(self._requests[request_id], engines, now)
        self.remove(request_id)
        return request_id, verdict

    def take_expired(
        self, engines: int, now: float, since: float = -math.inf, max_requests: int | None = None
    ) -> Refusals:
        """Removes and returns the requests that must be refused now, at most `max_requests`.

        - Those queued for longer than `limits.queue_seconds`.
        - Sheddable ones that are overdue.

        since: when the first instance became ready; for the first rule, waiting counts from then.

        Why: an overdue request would go before those of higher tiers.
        """
        before, sheds = now - self._queue_seconds, self._shed_at <= now
        expired: list[AdmissionRequest] | None = None
        for request in self._requests.values():
            if max(request.arrived_at, since) <= before or (request.sheddable and request.overdue_at <= now):
                expired = expired or []
                expired.append(request)
                if len(expired) == max_requests:
                    break
            elif not sheds:
                break  # the others came later; thousands may wait, and each event of an engine asks
        else:  # all were looked at; after a break, the next call must look again
            if sheds:
                left = [other.overdue_at for other in self._requests.values() if other.sheddable]
                self._shed_at = min([at for at in left if at > now], default=math.inf)
        if expired is None:
            return ()
        refusals = []
        for request in expired:
            self.remove(request.id)
            wait = self.expected_wait(request.tier, engines, now)
            reason = f"the request was queued for {now - request.arrived_at:.1f} s and no instance had room for it"
            is_shed = request.sheddable
            rule = "shed-late" if is_shed else "held-too-long"
            verdict = AdmissionVerdict(AdmissionAction.REFUSE, rule, reason, retry_after=wait, is_shed=is_shed)
            refusals.append((request.id, verdict))
        return refusals

    def remove(self, request_id: str) -> bool:
        """Removes a request that expired or whose client disconnected. Returns False if it is not
        queued.
        """
        request = self._requests.pop(request_id, None)
        if request is None:
            return False
        self._bounds.remove(request_id, request.tenant)
        self._queue.remove(request_id)
        return True

    def __len__(self) -> int:
        return len(self._requests)

    # --- requests that are released

    def release_next(self, engines: Sequence[EngineLoad], now: float) -> Admitted | None:
        """Removes and returns the next queued request that an instance has room for, else None.

        A request without room is passed over for those of other callers, `MAX_PASSED_OVER` times at
        most, unless its caller may hold the memory. The caller of this function dispatches the
        request before the next call.
        """
        if not self._requests or not engines:
            return None
        ordered = self.is_order_relevant()
        if ordered and not any(engine.has_room(long=False) for engine in engines):
            return None  # to order the queue would be for nothing
        passed_over: list[Hashable] = []
        while len(passed_over) <= MAX_PASSED_OVER:
            candidate, reserved = self._next_candidate(engines, now, passed_over)
            if candidate is None:
                return None
            full = self._full_instances(self._requests[candidate.request.id], engines, now, reserved)
            if len(full) < len(engines):
                return self._take(candidate, frozenset(full) if full else NO_INSTANCES, now)
            caller = candidate.request.tenant
            if (
                reserved is not None
                or not self._bounds.has_several_callers
                or self.memory_hold.hold_if_allowed(caller, now)
            ):
                return None
            passed_over.append(caller)
        return None

    def _next_candidate(
        self, engines: Sequence[EngineLoad], now: float, passed_over: Sequence[Hashable]
    ) -> tuple[NextRequest | None, str | None]:
        """Returns the next request, and the instance that is reserved for a long one."""
        candidate = self._queue.peek(now, (), passed_over)
        if candidate is None or not self._has_own_engines(candidate.request):
            return candidate, None
        if self._is_closed_to_long(engines, now):
            return self._queue.peek(now, _LONG_CLOSED, passed_over), None
        if any(engine.has_room(long=True) for engine in engines):
            return candidate, None
        return self._queue.peek(now, _LONG_CLOSED, passed_over), min(engines, key=_backlog_seconds).id

    def _take(self, candidate: NextRequest, full: frozenset[str], now: float) -> Admitted:
        queued = candidate.request
        self._queue.take(candidate)
        self._drain_rate.on_dispatch(queued.prefill_seconds, now)
        del self._requests[queued.id]
        self._bounds.remove(queued.id, queued.tenant)
        return Admitted(queued.id, candidate.rule, candidate.reason, full, now - queued.arrived_at)

    def on_finish(
        self, request_id: str, length_class: Hashable, prompt_tokens: float, output_tokens: int | None, now: float
    ) -> None:
        """Frees the memory planned for a finished request, and learns its output length.

        output_tokens: None if the response was cut or the engine did not report it.
        """
        self.kv_capacity.on_finish(request_id, now, output_tokens)
        if not output_tokens:
            return
        self._answers += 1
        if self._answers <= ALL_LEARNED_ANSWERS or self._answers % LEARNED_ANSWER_INTERVAL == 0:
            self._output_lengths.learn(length_class, prompt_tokens, output_tokens, now)


def _backlog_seconds(engine: EngineLoad) -> float:
    return engine.backlog_seconds

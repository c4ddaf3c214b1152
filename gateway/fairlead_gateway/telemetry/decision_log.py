"""The decision log: the last decisions, in memory, for `explain` and the status page.

Each request has an entry under the gateway's own id, which is unique. An id that a client chose
finds the newest request of the same tenant with it. No tenant finds requests of another.

It is bounded by number. It never holds a prompt: only ids, counts, seconds and the texts of the
rules. Requests that failed, and the slowest of each five minutes of the last hour, stay longer than
others: people ask about them, and often later.

The outcome of one request, from which metrics, decision log and trace are made.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from heapq import heappush, heappushpop
from itertools import islice
from typing import Final

from fairlead.decision import Decision
from fairlead.fleet.model import SloTargets
from fairlead_gateway.routes.target_choice import RouteDecision
from fairlead_gateway.telemetry.handoff_record import HandoffRecord

ENGINE_REFUSED: Final = "engine-refused"
LATEST: Final = "latest"
FAILED: Final = "failed"
SLOW: Final = "slow"
FAILED_REQUESTS: Final = 512
"""Limit: requests that failed and that a worker keeps after the others of their time."""
REFUSED_REQUESTS: Final = 256
"""Limit: the same for requests that were answered with 4xx, so that they displace no others."""
SLOWEST_REQUESTS: Final = 48
"""Limit: requests of each five minutes that a worker keeps for an hour because they were slow."""
_WINDOW_SECONDS: Final = 300.0
_WINDOWS: Final = 12

CONTINUATION_RULE = "continue-1"
"""The rule of a decision for the rest of a stream that had begun."""

SHADOW_SIDES: Final = ("copy", "original")
COMPARED: Final = "compared"
"""The number of requests that both models have answered, or failed."""

SHADOW_NAMES: Final = 12
"""The number of names of sums in a comparison."""


@dataclass(slots=True)
class DecisionRecord:
    """One choice of an instance.

    - attempt: counts from 1.
    - prompt_tokens: the estimate with which it was made.
    - caller: name of the tenant; None if the gateway asks for no API key.
    - client_id: the id that the client chose; None if it sent none.
    - handoff: the record of disaggregated prefill, if any.
    - route: how a route chose the model; None if the client named the model itself.
    - kept_back: fields and headers of the request that its engine does not get.
    """

    request_id: str
    wall: float
    model_key: str
    decision: Decision
    attempt: int
    prompt_tokens: float
    caller: str | None
    handoff: HandoffRecord | None
    client_id: str | None
    route: RouteDecision | None
    kept_back: tuple[str, ...]

    def __init__(
        self,
        request_id: str,
        wall: float,
        model_key: str,
        decision: Decision,
        attempt: int,
        prompt_tokens: float,
        caller: str | None = None,
        handoff: HandoffRecord | None = None,
    ) -> None:
        self.request_id = request_id
        self.wall = wall
        self.model_key = model_key
        self.decision = decision
        self.attempt = attempt
        self.prompt_tokens = prompt_tokens
        self.caller = caller
        self.handoff = handoff
        self.client_id = None
        self.route = None
        self.kept_back = ()


@dataclass(slots=True)
class RequestOutcome:
    """The response to one request, and what is known of the request at its end. None is "unknown",
    never zero. It is the request's entry in the decision log.

    The constructor takes what every outcome has; callers set the other fields.

    - records: the decisions of the request, in order, once the log has the first one.
    - has_ended: the other fields have their last values.
    - status: what the client received, or would have received; 0 before.
    - error: the failure in one word.
    - within_objective: None if the model has no SLO; `within_ttft` and `within_itl` are its
      two parts.
    - overhead_seconds: the gateway's own time, from the request's last byte to its dispatch,
      without waits in queues and prefill elsewhere. None after a failed attempt.
    - queued_seconds: waits in queues of the gateway for an engine, in all attempts.
    - failures: (instance, reason) of attempts before the last one.
    - dispatched_at: monotonic seconds at which the request was last sent before its first byte.
    - estimated_tokens, estimated_prompt: of the output and the prompt, if the engine reported none.
    - next_sequence_number: of the next event of a stream that is passed on, if events have numbers.
    - response_id: of a response of OpenAI's, as the client has it; empty before it is known.
    - break_seconds: the longest pause at which another instance took over the stream.
    - recomputed_tokens: of the prompt and the answer so far, which those instances computed again.
    - not_continued: why no instance has continued a stream that broke, in one word.
    - is_charged: the request failed because of itself, so what was computed is charged.
    """

    request_id: str
    model_key: str
    instance_id: str | None
    status: int
    error: str | None
    started_wall: float
    duration_seconds: float
    ttft_seconds: float | None
    itl_mean_seconds: float | None
    prompt_tokens: int | None
    cached_tokens: int | None
    predicted_cached_tokens: int | None
    output_tokens: int | None
    within_objective: bool | None
    attempts: int
    client_disconnected: bool
    within_ttft: bool | None
    within_itl: bool | None
    overhead_seconds: float | None
    queued_seconds: float
    failures: tuple[tuple[str, str], ...]
    dispatched_at: float | None
    first_at: float | None
    last_at: float | None
    event_count: int
    next_sequence_number: int
    response_id: str
    break_seconds: float | None
    recomputed_tokens: int
    not_continued: str
    is_charged: bool
    estimated_tokens: int
    estimated_prompt: int
    records: list[DecisionRecord]
    has_ended: bool

    def __init__(self, request_id: str, model_key: str, started_wall: float) -> None:
        self.request_id = request_id
        self.model_key = model_key
        self.instance_id = None
        self.status = 0
        self.error = None
        self.started_wall = started_wall
        self.duration_seconds = 0.0
        self.ttft_seconds = None
        self.itl_mean_seconds = None
        self.prompt_tokens = None
        self.cached_tokens = None
        self.predicted_cached_tokens = None
        self.output_tokens = None
        self.within_objective = None
        self.attempts = 1
        self.client_disconnected = False
        self.within_ttft = None
        self.within_itl = None
        self.overhead_seconds = None
        self.queued_seconds = 0.0
        self.failures = ()
        self.dispatched_at = None
        self.first_at = None
        self.last_at = None
        self.event_count = 0
        self.next_sequence_number = 0
        self.response_id = ""
        self.break_seconds = None
        self.recomputed_tokens = 0
        self.not_continued = ""
        self.is_charged = False
        self.estimated_tokens = 0
        self.estimated_prompt = 0
        self.records = []
        self.has_ended = False

    def note_response_id(self, response_id: str) -> None:
        self.response_id = self.response_id or response_id

    @property
    def latest(self) -> DecisionRecord:
        return self.records[-1]

    def is_of(self, key: str) -> bool:
        route = self.records[0].route
        return self.latest.model_key == key or (route is not None and route.route == key)

    @property
    def is_complete(self) -> bool:
        return self.error is None and 0 < self.status < 400 and not self.client_disconnected

    @property
    def waited_seconds(self) -> float:
        """The seconds until the first token of a stream; until the end of any other answer."""
        return self.duration_seconds if self.ttft_seconds is None else self.ttft_seconds

    @property
    def is_refunded(self) -> bool:
        return not (self.client_disconnected or self.is_charged or self.is_complete)


def is_client_fault(outcome: RequestOutcome) -> bool:
    return outcome.error == ENGINE_REFUSED and 400 <= outcome.status < 500


@dataclass(slots=True)
class Attainment:
    """The attainment of the latency targets by one request; None where there is no target.

    - itl: also None for a complete answer of one token.
    - both: True if no target was missed.
    """

    ttft: bool | None
    itl: bool | None
    both: bool | None

    def __init__(self, ttft: bool | None, itl: bool | None, both: bool | None) -> None:
        self.ttft = ttft
        self.itl = itl
        self.both = both


_NO_OBJECTIVE: Final = Attainment(None, None, None)


def assess_attainment(
    objectives: SloTargets,
    *,
    prompt_tokens: float | None,
    ttft_seconds: float | None,
    itl_mean_seconds: float | None,
    failed: bool,
) -> Attainment:
    """Returns which of its latency targets a request met.

    A failed request misses all of them.
    """
    if objectives.ttft_seconds is None and objectives.itl_seconds is None:
        return _NO_OBJECTIVE
    limit = objectives.ttft_limit_seconds(prompt_tokens or 0.0)
    ttft = None if limit is None else (not failed and ttft_seconds is not None and ttft_seconds <= limit)
    if objectives.itl_seconds is None or (itl_mean_seconds is None and not failed):
        itl = None
    else:
        itl = not failed and itl_mean_seconds is not None and itl_mean_seconds <= objectives.itl_seconds
    both = None if ttft is None and itl is None else ttft is not False and itl is not False
    return Attainment(ttft, itl, both)


class ShadowAnswer:
    """An answer to a request that was copied: by the model that was asked, or by its shadow.

    failed: it is no whole answer.
    ttft_seconds, tpot_seconds: from the dispatch to the engine; None for an answer without a
        stream.
    output_tokens: None if the engine reported none.
    """

    __slots__ = ("failed", "output_tokens", "tpot_seconds", "ttft_seconds")

    def __init__(
        self, failed: bool, ttft_seconds: float | None, tpot_seconds: float | None, output_tokens: int | None
    ) -> None:
        self.failed = failed
        self.ttft_seconds = ttft_seconds
        self.tpot_seconds = tpot_seconds
        self.output_tokens = output_tokens


def shadow_sums(copy: ShadowAnswer, original: ShadowAnswer) -> dict[str, int]:
    """Returns what a pair of answers adds to the sums of a comparison, by name.

    A value counts only if both answers have it. So the means are of the same requests. Times are in
    microseconds: integers of several processes add up exactly.
    """
    found = {COMPARED: 1}
    for side, answer in zip(SHADOW_SIDES, (copy, original), strict=True):
        found[f"errors:{side}"] = int(answer.failed)
    if copy.failed or original.failed:
        return found
    for name, first, second in (
        ("ttft", _microseconds(copy.ttft_seconds), _microseconds(original.ttft_seconds)),
        ("tpot", _microseconds(copy.tpot_seconds), _microseconds(original.tpot_seconds)),
        ("output_tokens", copy.output_tokens, original.output_tokens),
    ):
        if first is not None and second is not None:
            found[name] = 1
            found[f"{name}:copy"] = first
            found[f"{name}:original"] = second
    return found


def _microseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1e6 + 0.5)


class _SlowestRequests:
    """The slowest requests of each of the last windows of time, by the time of their end."""

    def __init__(self) -> None:
        self._windows: dict[int, list[tuple[float, int, RequestOutcome]]] = {}  # heaps: the fastest first
        self._count = 0
        self.by_id: dict[str, RequestOutcome] = {}

    def add(self, outcome: RequestOutcome) -> list[RequestOutcome]:
        """Takes a request that has ended, if it is slow; returns those that are kept no longer."""
        number = int((outcome.started_wall + outcome.duration_seconds) / _WINDOW_SECONDS)
        window = self._windows.setdefault(number, [])
        self._count += 1
        entry = (outcome.waited_seconds, self._count, outcome)
        dropped: list[RequestOutcome] = []
        if len(window) == SLOWEST_REQUESTS:
            fastest = heappushpop(window, entry)[2]
            if fastest is outcome:
                return dropped
            dropped.append(fastest)
        else:
            heappush(window, entry)
        self.by_id[outcome.request_id] = outcome
        if len(self._windows) > _WINDOWS + 1:
            dropped += [old[2] for old in self._windows.pop(next(iter(self._windows)))]
        for old in dropped:
            if self.by_id.get(old.request_id) is old:
                del self.by_id[old.request_id]
        return dropped

    def slowest_first(self) -> list[RequestOutcome]:
        entries = [entry for window in self._windows.values() for entry in window]
        entries.sort(key=lambda entry: -entry[0])
        return [entry[2] for entry in entries]


class DecisionLog:
    """The log of the decisions of the last `max_requests` requests.

    It has those that failed and the slowest for longer.

    on_record: called with every record; must return at once.
    """

    def __init__(self, max_requests: int, on_record: Callable[[DecisionRecord], None] | None = None) -> None:
        self._max_requests = max(1, max_requests)
        self.on_record = on_record
        self._entries: OrderedDict[str, RequestOutcome] = OrderedDict()  # the oldest goes in constant time
        self._by_client_id: dict[tuple[str | None, str], RequestOutcome] = {}
        self._failed: OrderedDict[str, RequestOutcome] = OrderedDict()
        self._refused: OrderedDict[str, RequestOutcome] = OrderedDict()
        self._slowest = _SlowestRequests()

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, record: DecisionRecord, outcome: RequestOutcome) -> None:
        """Adds a decision. Those of a retry, or after a failed hand-off, join their request. A new
        request with a known id replaces that one.

        outcome: of the request; its entry, unless the decision joins one.
        """
        if self.on_record is not None:
            self.on_record(record)
        requests, name = self._entries, record.request_id
        known = requests.get(name)
        if known is not None:
            # The same hand-off is that of the same request, which is sent without it now.
            if record.attempt > 1 or (record.handoff is not None and known.latest.handoff is record.handoff):
                known.records.append(record)
                return
            self._remove(known)
            self._failed.pop(name, None)
            self._refused.pop(name, None)
            self._slowest.by_id.pop(name, None)
        outcome.records = [record]
        requests[name] = outcome
        if record.client_id is not None:
            self._by_client_id[record.caller, record.client_id] = outcome
        if len(requests) > self._max_requests:
            self._remove(next(iter(requests.values())))

    def complete(self, outcome: RequestOutcome) -> None:
        """Notes that a request has ended. Unknown requests are ignored.

        At the model of a fallback it has another outcome, which takes over the entry.
        """
        known = self._entries.get(outcome.request_id)
        if known is None:
            return
        outcome.has_ended = True
        if known is not outcome:
            outcome.records = known.records
            self._entries[outcome.request_id] = outcome
            first = known.records[0]
            if first.client_id is not None and self._by_client_id.get((first.caller, first.client_id)) is known:
                self._by_client_id[first.caller, first.client_id] = outcome
        self._keep_longer(outcome)

    def _keep_longer(self, outcome: RequestOutcome) -> None:
        name = outcome.request_id
        if not (outcome.is_complete or outcome.client_disconnected):
            is_refusal = 400 <= outcome.status < 500
            kept, most = (self._refused, REFUSED_REQUESTS) if is_refusal else (self._failed, FAILED_REQUESTS)
            kept[name] = outcome
            if len(kept) > most:
                self._forget(kept.popitem(last=False)[1])
        for dropped in self._slowest.add(outcome):
            self._forget(dropped)

    def latest(
        self,
        count: int,
        model_key: str | None = None,
        callers: Collection[str] | None = None,
        kind: str = LATEST,
    ) -> list[RequestOutcome]:
        """Returns `count` requests: the newest ones, or the slowest of the last hour.

        model_key: only of this model, or of the route with this key.
        callers: only of these tenants.
        kind: `latest`, newest first; `failed`, newest first; or `slow`, slowest first.
        """
        if kind == SLOW:
            entries: Iterable[RequestOutcome] = self._slowest.slowest_first()
        elif kind == FAILED:
            failed = [*self._failed.values(), *self._refused.values()]
            entries = sorted(failed, key=lambda entry: -entry.started_wall)
        else:
            entries = reversed(self._entries.values())
        return list(islice(_selected(entries, model_key, callers), max(0, count)))

    def find(self, request_id: str, callers: Collection[str] | None = None) -> list[RequestOutcome]:
        """Returns the request with this id, or the newest one of each tenant that chose this id.

        request_id: the gateway's own id, or a client's.
        callers: only requests of these tenants.
        """
        entry = self._entry(request_id)
        if entry is not None and (callers is None or entry.records[0].caller in callers):
            return [entry]
        if callers is not None:
            named = (self._by_client_id.get((caller, request_id)) for caller in callers)
            return [found for found in named if found is not None]
        return [found for (_, client_id), found in self._by_client_id.items() if client_id == request_id]

    def _remove(self, entry: RequestOutcome) -> None:
        del self._entries[entry.records[0].request_id]
        self._forget(entry)

    def _forget(self, entry: RequestOutcome) -> None:
        """Drops the client's id of a request that left a part of the log, unless another has it."""
        first = entry.records[0]
        if first.client_id is None or self._entry(first.request_id) is entry:
            return
        if self._by_client_id.get((first.caller, first.client_id)) is entry:
            del self._by_client_id[first.caller, first.client_id]

    def _entry(self, request_id: str) -> RequestOutcome | None:
        for kept in (self._entries, self._failed, self._refused, self._slowest.by_id):
            entry = kept.get(request_id)
            if entry is not None:
                return entry
        return None


def _selected(
    entries: Iterable[RequestOutcome], model_key: str | None, callers: Collection[str] | None
) -> Iterator[RequestOutcome]:
    for entry in entries:
        if (model_key is None or entry.is_of(model_key)) and (callers is None or entry.records[0].caller in callers):
            yield entry

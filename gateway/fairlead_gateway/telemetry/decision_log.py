"""The decision log: the last decisions, in memory, for `explain` and the status page.

Each request has an entry under the gateway's own id, which is unique. An id that a client chose
finds the newest request of the same tenant with it. No tenant finds requests of another.

It is bounded by number. It never holds a prompt: only ids, counts, seconds and the texts of the
rules.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice

from fairlead.decision import Decision
from fairlead.routes.resolution import RouteDecision
from fairlead_gateway.telemetry import RequestOutcome
from fairlead_gateway.telemetry.handoff_record import HandoffRecord

CONTINUATION_RULE = "continue-1"
"""The rule of a decision for the rest of a stream that had begun."""


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
class LoggedRequest:
    """All decisions of one request, in order, and its outcome (None while it runs)."""

    records: list[DecisionRecord]
    outcome: RequestOutcome | None

    def __init__(self, records: list[DecisionRecord], outcome: RequestOutcome | None = None) -> None:
        self.records = records
        self.outcome = outcome

    @property
    def latest(self) -> DecisionRecord:
        """The latest decision."""
        return self.records[-1]

    def is_of(self, key: str) -> bool:
        """Returns whether the request went to this model, or named this route."""
        route = self.records[0].route
        return self.latest.model_key == key or (route is not None and route.route == key)


class _LogEntry(LoggedRequest):
    """An entry of the log, linked to its neighbours, so that it is removed in constant time."""

    __slots__ = ("newer", "older")

    def __init__(self, record: DecisionRecord, older: "_LogEntry | None") -> None:
        super().__init__([record])
        self.older = older
        self.newer: _LogEntry | None = None


class DecisionLog:
    """The log of the decisions of at most `max_requests` requests.

    on_record: called with every record; must return at once.
    """

    def __init__(self, max_requests: int, on_record: Callable[[DecisionRecord], None] | None = None) -> None:
        self._max_requests = max(1, max_requests)
        self.on_record = on_record
        self._entries: dict[str, _LogEntry] = {}
        self._by_client_id: dict[tuple[str | None, str], _LogEntry] = {}
        self._oldest: _LogEntry | None = None
        self._newest: _LogEntry | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, record: DecisionRecord) -> None:
        """Adds a decision. Those of a retry, or after a failed hand-off, join their request."""
        if self.on_record is not None:
            self.on_record(record)
        requests, name = self._entries, record.request_id
        known = requests.get(name)
        if known is not None:
            if record.attempt > 1 or (record.handoff is not None and known.latest.handoff is record.handoff):
                known.records.append(record)
                return
            self._remove(known)
        before = self._newest
        entry = requests[name] = self._newest = _LogEntry(record, before)
        if record.client_id is not None:
            self._by_client_id[record.caller, record.client_id] = entry
        if before is None:
            self._oldest = entry
        else:
            before.newer = entry
        if len(requests) > self._max_requests and self._oldest is not None:
            self._remove(self._oldest)

    def complete(self, outcome: RequestOutcome) -> None:
        """Sets the outcome of a request. Unknown requests are ignored."""
        known = self._entries.get(outcome.request_id)
        if known is not None:
            known.outcome = outcome

    def latest(
        self, count: int, model_key: str | None = None, callers: Collection[str] | None = None
    ) -> list[LoggedRequest]:
        """Returns the newest `count` requests, newest first.

        model_key: only of this model, or of the route with this key.
        callers: only of these tenants.
        """
        return list(islice(self._newest_first(model_key, callers), max(0, count)))

    def find(self, request_id: str, callers: Collection[str] | None = None) -> list[LoggedRequest]:
        """Returns the request with this id, or the newest one of each tenant that chose this id.

        request_id: the gateway's own id, or a client's.
        callers: only requests of these tenants.
        """
        entry = self._entries.get(request_id)
        if entry is not None and (callers is None or entry.records[0].caller in callers):
            return [entry]
        if callers is not None:
            named = (self._by_client_id.get((caller, request_id)) for caller in callers)
            return [found for found in named if found is not None]
        return [found for (_, client_id), found in self._by_client_id.items() if client_id == request_id]

    def _remove(self, entry: _LogEntry) -> None:
        first = entry.records[0]
        del self._entries[first.request_id]
        if first.client_id is not None and self._by_client_id.get((first.caller, first.client_id)) is entry:
            del self._by_client_id[first.caller, first.client_id]
        older, newer = entry.older, entry.newer
        entry.older = entry.newer = None
        if older is None:
            self._oldest = newer
        else:
            older.newer = newer
        if newer is None:
            self._newest = older
        else:
            newer.older = older

    def _newest_first(self, model_key: str | None, callers: Collection[str] | None) -> Iterator[LoggedRequest]:
        entry = self._newest
        while entry is not None:
            if (model_key is None or entry.is_of(model_key)) and (
                callers is None or entry.records[0].caller in callers
            ):
                yield entry
            entry = entry.older

"""The last decisions, kept in memory so that ``explain`` and the status page can say why a request went where it did.

Bounded by count, oldest out first. It never holds a prompt: ids, counts, seconds and the words of the rule only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from fairlead.decision import Decision
from fairlead_gateway.telemetry import RequestOutcome
from fairlead_gateway.telemetry.handoff_record import HandoffRecord

CONTINUATION_RULE = "continue-1"
"""The rule of a choice that was made for the rest of a stream that had begun."""


@dataclass(slots=True)
class DecisionRecord:
    """One choice of an instance; ``attempt`` counts from 1, ``prompt_tokens`` is the estimate it was made with, ``caller``
    the name of the API key that was shown, ``story`` what becomes of the hand-off where prefill and decode are split."""

    request_id: str
    wall: float
    model_key: str
    decision: Decision
    attempt: int
    prompt_tokens: float
    caller: str | None
    handoff: HandoffRecord | None

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


@dataclass(slots=True)
class LoggedRequest:
    """All choices made for one request, in order, and how it ended (None while it runs)."""

    records: list[DecisionRecord]
    outcome: RequestOutcome | None

    def __init__(self, records: list[DecisionRecord], outcome: RequestOutcome | None = None) -> None:
        self.records = records
        self.outcome = outcome

    @property
    def latest(self) -> DecisionRecord:
        """The choice that stood."""
        return self.records[-1]


class _LogEntry(LoggedRequest):
    """One in the log. It knows its neighbours, so that the oldest leaves, and an id that comes again moves up, at once."""

    __slots__ = ("newer", "older")

    def __init__(self, record: DecisionRecord, older: "_LogEntry | None") -> None:
        super().__init__([record])
        self.older = older
        self.newer: _LogEntry | None = None


class DecisionLog:
    """Keeps ``limit`` requests; appending and settling are dictionary operations.

    ``told`` is handed every record at once; it must only put it aside (the board's ``offer`` does).
    """

    def __init__(self, max_requests: int, on_record: Callable[[DecisionRecord], None] | None = None) -> None:
        self._max_requests = max(1, max_requests)
        self.on_record = on_record
        self._entries: dict[str, _LogEntry] = {}
        self._oldest: _LogEntry | None = None
        self._newest: _LogEntry | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, record: DecisionRecord) -> None:
        """Remember a choice; a retry, and what follows a hand-off that failed, joins the choices of its request."""
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
        if before is None:
            self._oldest = entry
        else:
            before.newer = entry
        if len(requests) > self._max_requests and self._oldest is not None:
            self._remove(self._oldest)

    def complete(self, outcome: RequestOutcome) -> None:
        """Say how a request ended; one that has left the log is ignored."""
        known = self._entries.get(outcome.request_id)
        if known is not None:
            known.outcome = outcome

    def latest(self, count: int, model_key: str | None = None) -> list[LoggedRequest]:
        """The newest ``count`` requests, newest first, of one model or of all."""
        return list(islice(self._newest_first(model_key), max(0, count)))

    def get(self, request_id: str) -> LoggedRequest | None:
        """Everything known of one request; None when it is not (or no longer) in the log."""
        return self._entries.get(request_id)

    def _remove(self, entry: _LogEntry) -> None:
        del self._entries[entry.records[0].request_id]
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

    def _newest_first(self, model_key: str | None) -> Iterator[LoggedRequest]:
        entry = self._newest
        while entry is not None:
            if model_key is None or entry.latest.model_key == model_key:
                yield entry
            entry = entry.older

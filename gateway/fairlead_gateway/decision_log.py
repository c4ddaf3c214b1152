"""The last decisions, kept in memory so that ``explain`` and the status page can say why a request went where it did.

Bounded by count, oldest out first. It never holds a prompt: ids, counts, seconds and the words of the rule only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from fairlead.decision import Decision
from fairlead_gateway.handoff_story import HandoffStory
from fairlead_gateway.telemetry import Outcome

CONTINUED = "continue-1"
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
    story: HandoffStory | None

    def __init__(
        self,
        request_id: str,
        wall: float,
        model_key: str,
        decision: Decision,
        attempt: int,
        prompt_tokens: float,
        caller: str | None = None,
        story: HandoffStory | None = None,
    ) -> None:
        self.request_id = request_id
        self.wall = wall
        self.model_key = model_key
        self.decision = decision
        self.attempt = attempt
        self.prompt_tokens = prompt_tokens
        self.caller = caller
        self.story = story


@dataclass(slots=True)
class Logged:
    """All choices made for one request, in order, and how it ended (None while it runs)."""

    records: list[DecisionRecord]
    outcome: Outcome | None

    def __init__(self, records: list[DecisionRecord], outcome: Outcome | None = None) -> None:
        self.records = records
        self.outcome = outcome

    @property
    def last(self) -> DecisionRecord:
        """The choice that stood."""
        return self.records[-1]


class _Entry(Logged):
    """One in the log. It knows its neighbours, so that the oldest leaves, and an id that comes again moves up, at once."""

    __slots__ = ("newer", "older")

    def __init__(self, record: DecisionRecord, older: "_Entry | None") -> None:
        super().__init__([record])
        self.older = older
        self.newer: _Entry | None = None


class DecisionLog:
    """Keeps ``limit`` requests; appending and settling are dictionary operations.

    ``told`` is handed every record at once; it must only put it aside (the board's ``offer`` does).
    """

    def __init__(self, limit: int, told: Callable[[DecisionRecord], None] | None = None) -> None:
        self._limit = max(1, limit)
        self.told = told
        self._requests: dict[str, _Entry] = {}
        self._oldest: _Entry | None = None
        self._newest: _Entry | None = None

    def __len__(self) -> int:
        return len(self._requests)

    def append(self, record: DecisionRecord) -> None:
        """Remember a choice; a retry, and what follows a hand-off that failed, joins the choices of its request."""
        if self.told is not None:
            self.told(record)
        requests, name = self._requests, record.request_id
        known = requests.get(name)
        if known is not None:
            if record.attempt > 1 or (record.story is not None and known.last.story is record.story):
                known.records.append(record)
                return
            self._forget(known)
        before = self._newest
        entry = requests[name] = self._newest = _Entry(record, before)
        if before is None:
            self._oldest = entry
        else:
            before.newer = entry
        if len(requests) > self._limit and self._oldest is not None:
            self._forget(self._oldest)

    def settle(self, outcome: Outcome) -> None:
        """Say how a request ended; one that has left the log is ignored."""
        known = self._requests.get(outcome.request_id)
        if known is not None:
            known.outcome = outcome

    def last(self, count: int, model_key: str | None = None) -> list[Logged]:
        """The newest ``count`` requests, newest first, of one model or of all."""
        return list(islice(self._newest_first(model_key), max(0, count)))

    def get(self, request_id: str) -> Logged | None:
        """Everything known of one request; None when it is not (or no longer) in the log."""
        return self._requests.get(request_id)

    def _forget(self, entry: _Entry) -> None:
        del self._requests[entry.records[0].request_id]
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

    def _newest_first(self, model_key: str | None) -> Iterator[Logged]:
        entry = self._newest
        while entry is not None:
            if model_key is None or entry.last.model_key == model_key:
                yield entry
            entry = entry.older

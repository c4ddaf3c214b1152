"""Measurement of both revisions, interval by interval, from the counters of all gateways."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from fairlead_operator.canary.judge import Interval, Judgement, RevisionSums, judge

_MIN_ATTEMPTS = 10
"""Requests of the canary in an interval; with fewer, it goes on."""


class InstanceTotals(msgspec.Struct, frozen=True):
    """The totals of an instance since a gateway started, as the gateway reports them."""

    attempts: int = 0
    errors: int = 0
    first_tokens: int = 0
    ttft_seconds: float = 0.0
    gaps: int = 0
    gap_seconds: float = 0.0
    answers: int = 0
    log_tokens: float = 0.0
    computed_tokens: int = 0

    def since(self, earlier: "InstanceTotals") -> RevisionSums:
        """Returns what happened since an earlier report of the same gateway."""
        return RevisionSums(
            self.attempts - earlier.attempts,
            self.errors - earlier.errors,
            self.first_tokens - earlier.first_tokens,
            self.ttft_seconds - earlier.ttft_seconds,
            self.gaps - earlier.gaps,
            self.gap_seconds - earlier.gap_seconds,
            self.answers - earlier.answers,
            self.log_tokens - earlier.log_tokens,
            self.computed_tokens - earlier.computed_tokens,
        )


class _InstanceStats(msgspec.Struct):
    totals: InstanceTotals = InstanceTotals()


class _ModelStats(msgspec.Struct):
    instances: dict[str, _InstanceStats] = {}


class GatewayStats(msgspec.Struct):
    """The part of a gateway's `/api/stats` that canaries need."""

    models: dict[str, _ModelStats] = {}


GatewayReports = Mapping[str, GatewayStats]
"""The reports by the name of the gateway."""
_Seen = dict[tuple[str, str], InstanceTotals]


@dataclass(slots=True)
class CanaryRecord:
    """The observations of one canary.

    since: of the state that it belongs to: a new step begins with a pause.
    started: wall time of the first observation of the step.
    settled: wall time from which on requests count.
    """

    hash: str
    since: str = ""
    started: float = 0.0
    settled: float = 0.0
    intervals: list[Interval] = field(default_factory=list)
    _seen: _Seen = field(default_factory=dict)
    _running: RevisionSums = field(default_factory=RevisionSums)
    _canary: RevisionSums = field(default_factory=RevisionSums)

    def begin_step(self, since: str, wall: float, settle_seconds: float) -> None:
        """Begins a step; what is under way of the one before is dropped."""
        self.since, self.started, self.settled = since, wall, wall + settle_seconds
        self._running = self._canary = RevisionSums()

    def observe(self, key: str, reports: GatewayReports, revisions: Mapping[str, bool], wall: float) -> None:
        """Adds what happened since the last observation.

        revisions: by the uid of each pod, whether it belongs to the canary.
        """
        seen: _Seen = {}
        for gateway, stats in reports.items():
            model = stats.models.get(key)
            for instance, found in (model.instances if model is not None else {}).items():
                is_canary = revisions.get(instance.partition("/")[0])
                if is_canary is None:
                    continue
                seen[gateway, instance] = found.totals
                before = self._seen.get((gateway, instance))
                if before is None or found.totals.attempts < before.attempts or wall < self.settled:
                    continue  # the first report, or the gateway has restarted
                if is_canary:
                    self._canary += found.totals.since(before)
                else:
                    self._running += found.totals.since(before)
        self._seen = self._seen | seen
        if self._canary.attempts >= _MIN_ATTEMPTS and self._running.attempts:
            self.intervals.append(Interval(self._running, self._canary))
            self._running = self._canary = RevisionSums()

    def judge(self, observe_seconds: float, wall: float) -> Judgement:
        """Returns the judgement on everything observed of this canary."""
        return judge(self.intervals, is_complete=wall - self.started >= observe_seconds)

"""Measurement of both revisions, interval by interval, from the counters of all gateways."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from fairlead_operator.canary.judge import Judgement, RevisionInterval, RevisionSums, judge

_MIN_ATTEMPTS = 10
"""Requests of the canary in an interval; with fewer, it goes on."""


class _InstanceStats(msgspec.Struct):
    """totals: of an instance since the gateway started."""

    totals: RevisionSums = RevisionSums()


class _ModelStats(msgspec.Struct):
    instances: dict[str, _InstanceStats] = {}


class GatewayStats(msgspec.Struct):
    """The part of a gateway's `/api/stats` that canaries need."""

    models: dict[str, _ModelStats] = {}


GatewayReports = Mapping[str, GatewayStats]
"""The reports by the name of the gateway."""
_LatestTotals = dict[tuple[str, str], RevisionSums]
"""By gateway and instance."""


@dataclass(slots=True)
class CanaryRecord:
    """The observations of one canary.

    since: `CanaryState.since` of the step.
    started: wall time of the first reading of the step.
    settled: wall time at which the warm-up of the step ends; earlier requests do not count.
    """

    hash: str
    since: str = ""
    started: float = 0.0
    settled: float = 0.0
    intervals: list[RevisionInterval] = field(default_factory=list)
    _latest: _LatestTotals = field(default_factory=dict)
    _running: RevisionSums = field(default_factory=RevisionSums)
    _canary: RevisionSums = field(default_factory=RevisionSums)

    def begin_step(self, since: str, wall: float, settle_seconds: float) -> None:
        """Begins a step, and drops the unfinished interval of the one before."""
        self.since, self.started, self.settled = since, wall, wall + settle_seconds
        self._running = self._canary = RevisionSums()

    def observe(self, key: str, reports: GatewayReports, revisions: Mapping[str, bool], wall: float) -> None:
        """Adds the growth of all counters since the last reading.

        revisions: by the uid of each pod, whether it belongs to the canary.
        """
        latest: _LatestTotals = {}
        for gateway, stats in reports.items():
            model = stats.models.get(key)
            for instance, found in (model.instances if model is not None else {}).items():
                is_canary = revisions.get(instance.partition("/")[0])
                if is_canary is None:
                    continue
                latest[gateway, instance] = found.totals
                before = self._latest.get((gateway, instance))
                growth = None if before is None else found.totals - before
                if growth is None or not growth.is_possible or wall < self.settled:
                    continue  # the first report, or the gateway has restarted
                if is_canary:
                    self._canary += growth
                else:
                    self._running += growth
        missing = {found: totals for found, totals in self._latest.items() if found[0] not in reports}
        self._latest = missing | latest
        if self._canary.attempts >= _MIN_ATTEMPTS and self._running.attempts:
            self.intervals.append(RevisionInterval(self._running, self._canary))
            self._running = self._canary = RevisionSums()

    def judge(self, observe_seconds: float, wall: float) -> Judgement:
        """Returns the judgement on everything observed of this canary."""
        return judge(self.intervals, is_complete=wall - self.started >= observe_seconds)

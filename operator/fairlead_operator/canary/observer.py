"""Canary observer: reads all gateways at each interval, and judges the canaries under way.

It runs in the leader only and writes nothing. A judgement is an input of the model's next pass.
After a restart nothing has been observed yet: the present step is observed from its start.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from pydantic import ValidationError

from fairlead.api.spec.rollout import Canary
from fairlead.errors import FairleadError
from fairlead.kube.resources import is_deleting, uid_of
from fairlead.runtime.clock import Pacing
from fairlead_operator.canary.judge import Judgement, RevisionInterval, RevisionSums, judge
from fairlead_operator.canary.progress import CanaryState, parse_state
from fairlead_operator.hung_engines.gateway_reports import GatewayReader, check_instance_count, decode_report
from fairlead_operator.kube.object_cache import ModelSnapshot, ObjectCache
from fairlead_operator.object_metadata import is_of_canary

CANARY_POLL_SECONDS: Final = 15.0
"""Limit: interval at which the operator compares a canary with what runs."""

_MIN_ATTEMPTS = 10
"""Requests of the canary in an interval; with fewer, it goes on."""

_LatestTotals = dict[tuple[str, str], RevisionSums]
"""By gateway and instance."""

SETTLE_SECONDS: Final = 60.0
"""Time after the begin of a step in which requests do not count. Why: conversations that moved
compute their prompts again, and new engines warm up."""
_LOG = logging.getLogger("fairlead.operator")


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
        return judge(self.intervals, is_complete=wall - self.started >= observe_seconds)


_DECODER: Final = msgspec.json.Decoder(GatewayStats)


@dataclass(frozen=True, slots=True)
class _StepJudgement:
    """A judgement, and the state that it is about."""

    hash: str
    since: str
    judgement: Judgement


class CanaryObserver:
    """The observer of all canaries."""

    def __init__(
        self, cache: ObjectCache, gateways: GatewayReader, pacing: Pacing, on_judgement: Callable[[str], None]
    ) -> None:
        self._cache = cache
        self._gateways = gateways
        self._pacing = pacing
        self._on_judgement = on_judgement
        self._records: dict[str, CanaryRecord] = {}
        self._judgements: dict[str, _StepJudgement] = {}

    def judgement(self, key: str, state: CanaryState | None) -> Judgement | None:
        """Returns the latest judgement on the step of a canary; None if there is none."""
        found = self._judgements.get(key)
        if found is None or state is None or (found.hash, found.since) != (state.hash, state.since):
            return None
        return found.judgement

    async def run(self) -> None:
        """Runs a round at each interval until it is cancelled."""
        while True:
            await self._pacing.pause(CANARY_POLL_SECONDS)
            try:
                await self.run_once()
            except FairleadError as error:
                _LOG.warning("canaries: %s", error)

    async def run_once(self) -> None:
        """Reads all gateways and judges every canary under way. Raises KubeError if the gateways
        cannot be listed.
        """
        under_way = {
            key: found for key in list(self._cache.models) if (found := self._find_active_canary(key)) is not None
        }
        self._records = {key: record for key, record in self._records.items() if key in under_way}
        self._judgements = {key: judged for key, judged in self._judgements.items() if key in under_way}
        if not under_way:
            return
        reports = self._decode(await self._gateways.fetch_all("/api/stats"))
        wall = self._pacing.clock.wall()
        for key, (snapshot, state, canary) in under_way.items():
            record = self._records.get(key)
            if record is None or record.hash != state.hash:
                record = self._records[key] = CanaryRecord(state.hash)
            if record.since != state.since:
                record.begin_step(state.since, wall, SETTLE_SECONDS)
            revisions = {uid_of(pod): is_of_canary(pod) for pod in snapshot.pods}
            record.observe(key, reports, revisions, wall)
            self._judgements[key] = _StepJudgement(state.hash, state.since, record.judge(canary.observe_seconds, wall))
            self._on_judgement(key)

    def _find_active_canary(self, key: str) -> tuple[ModelSnapshot, CanaryState, Canary] | None:
        """Returns a model whose canary gets requests, its state and its settings; None if it has no
        such canary.
        """
        model = self._cache.models.get(key)
        if model is None or is_deleting(model):
            return None
        state = parse_state(model.get("status") or {})
        settings = ((model.get("spec") or {}).get("rollout") or {}).get("canary")
        if state is None or not state.is_observed or not settings:
            return None
        try:
            canary = Canary.model_validate(settings)
        except ValidationError:
            return None  # of a later release; the model is stalled
        snapshot = self._cache.snapshot(key)
        return None if snapshot is None else (snapshot, state, canary)

    def _decode(self, bodies: dict[str, bytes | FairleadError]) -> GatewayReports:
        """Returns the reports of the gateways that answered."""
        reports: dict[str, GatewayStats] = {}
        for name, body in bodies.items():
            try:
                if isinstance(body, FairleadError):
                    raise body
                report = decode_report(body, _DECODER)
                check_instance_count(sum(len(model.instances) for model in report.models.values()))
                reports[name] = report
            except FairleadError as error:
                _LOG.warning("gateway %s is missing from the judgement on canaries: %s", name, error.message)
        return reports

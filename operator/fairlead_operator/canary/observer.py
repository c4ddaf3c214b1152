"""Canary observer: reads all gateways at each interval, and judges the canaries under way.

It runs in the leader only and writes nothing. A judgement is an input of the model's next pass.
After a restart nothing has been observed yet: the present step is observed from its start.
"""

import logging
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
from pydantic import ValidationError

from fairlead.api.spec.rollout import Canary
from fairlead.errors import FairleadError
from fairlead.kube.resources import is_deleting, uid_of
from fairlead.limits import Limits
from fairlead.runtime.clock import Pacing
from fairlead_operator.canary.judge import Judgement
from fairlead_operator.canary.measurement import CanaryRecord, GatewayReports, GatewayStats
from fairlead_operator.canary.progress import CanaryState, parse_state
from fairlead_operator.hung_engines.gateway_reports import check_instance_count, decode_report
from fairlead_operator.kube.object_cache import ModelSnapshot, ObjectCache
from fairlead_operator.object_metadata import is_of_canary

SETTLE_SECONDS: Final = 60.0
"""Time after the begin of a step in which requests do not count. Why: conversations that moved
compute their prompts again, and new engines warm up."""
_LOG = logging.getLogger("fairlead.operator")
_DECODER: Final = msgspec.json.Decoder(GatewayStats)


class StatsReader(Protocol):
    """A client that reads one path of every gateway's management port."""

    async def fetch_all(self, path: str) -> dict[str, bytes | FairleadError]:
        """Returns the answer of every ready gateway, or why there is none. Raises KubeError."""
        ...


class JudgementListener(Protocol):
    """The callback for models with a new judgement."""

    def __call__(self, key: str) -> None:
        """Adds a model to the queue."""
        ...


@dataclass(frozen=True, slots=True)
class _StepJudgement:
    """A judgement, and the state that it is about."""

    hash: str
    since: str
    judgement: Judgement


class CanaryObserver:
    """The observer of all canaries."""

    def __init__(
        self, cache: ObjectCache, gateways: StatsReader, pacing: Pacing, limits: Limits, on_judgement: JudgementListener
    ) -> None:
        self._cache = cache
        self._gateways = gateways
        self._pacing = pacing
        self._limits = limits
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
            await self._pacing.pause(self._limits.canary_poll_seconds)
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

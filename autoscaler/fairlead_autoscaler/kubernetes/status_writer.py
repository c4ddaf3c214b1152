"""Status writer: the autoscaler's conditions in a model's status, under its own field manager, and
its events.

It gets every record, and writes in a task of its own, so that no decision waits for a status. A
failed write is tried again later, with the status of that time. A model that is no longer scaled
loses its conditions.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from fairlead.errors import FairleadError
from fairlead.fleet.labels import AUTOSCALER_FIELD_MANAGER
from fairlead.kube.client_protocol import KubeClient
from fairlead.kube.conditions import ConditionValue, conditions_for, format_time
from fairlead.kube.errors import NotFound
from fairlead.kube.events.event import EventDraft
from fairlead.kube.resources import Manifest, is_deleting, metadata_of
from fairlead.runtime.clock import Clock
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_autoscaler.kubernetes import conditions, events
from fairlead_autoscaler.kubernetes.conditions import PublishedStatus
from fairlead_autoscaler.kubernetes.slo_attainment import SLOAttainment, add_observation

_LOG = logging.getLogger("fairlead.autoscaler")
_WRITE_INTERVAL_SECONDS: Final = 1.0


class ModelSource(Protocol):
    """A source of models (`target`)."""

    def models(self) -> Mapping[str, Manifest]:
        """Returns all models, by `namespace/name`."""
        ...

    def model(self, key: str) -> Manifest | None:
        """Returns one model; None if there is none."""
        ...

    def foreign_writers(self) -> Mapping[str, Mapping[str, str]]:
        """Returns the other owners of numbers, by model and pool: of models that are scaled, and of
        those that cannot be read.
        """
        ...


@dataclass(slots=True)
class _ModelHistory:
    """The state of one model between ticks."""

    uid: str
    last_record: TickRecord | None = None
    attainment: SLOAttainment = field(default_factory=SLOAttainment)
    published: PublishedStatus | None = None


class StatusWriter:
    """The writer of conditions and events.

    record_event: records an event of a model.
    is_leader: whether this process writes.
    writes, failures: the numbers of statuses that were written, and of those that failed.
    """

    def __init__(
        self,
        api: KubeClient,
        models: ModelSource,
        clock: Clock,
        record_event: Callable[[Manifest, EventDraft], None],
        *,
        is_leader: Callable[[], bool],
        is_frozen: bool = False,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.writes = 0
        self.failures = 0
        self._api = api
        self._models = models
        self._clock = clock
        self._record_event = record_event
        self._is_leader = is_leader
        self._is_frozen = is_frozen
        self._pause = pause
        self._histories: dict[str, _ModelHistory] = {}

    def on_record(self, record: TickRecord) -> None:
        """Stores the record of one model; the leader also sends the events of its scaling."""
        key = record.model.name
        model = self._models.model(key)
        if model is None:
            self._histories.pop(key, None)
            return
        uid = str(metadata_of(model).get("uid", ""))
        history = self._histories.get(key)
        if history is None or history.uid != uid:
            history = self._histories[key] = _ModelHistory(uid)
        if history.last_record is not None and self._is_leader():
            for draft in events.scaling_events(history.last_record, record):
                self._record_event(model, draft)
        history.attainment = add_observation(history.attainment, record.observation)
        history.last_record = record

    async def run(self) -> None:
        """Writes statuses until it is cancelled. A defect here never affects scaling."""
        while True:
            try:
                if self._is_leader():
                    await self.write_all()
            except Exception:  # noqa: BLE001  # it is logged, and the next round tries again
                self.failures += 1
                _LOG.exception("the statuses of the models could not be written")
            await self._pause(_WRITE_INTERVAL_SECONDS)

    async def write_all(self) -> None:
        """Writes the status of every model that is due, and removes the conditions of models not
        scaled.
        """
        models, writers = self._models.models(), self._models.foreign_writers()
        for key, model in models.items():
            if is_deleting(model):
                continue
            history = self._histories.get(key)
            if key not in writers:
                self._histories.pop(key, None)
                if conditions.has_own_condition(model.get("status") or {}):
                    await self._apply(key, model, ())
            elif history is not None and history.last_record is not None:
                await self._write_model(key, model, history, history.last_record, writers[key])
        for gone in self._histories.keys() - models.keys():
            del self._histories[gone]

    async def _write_model(
        self, key: str, model: Manifest, history: _ModelHistory, record: TickRecord, owners: Mapping[str, str]
    ) -> None:
        values: list[ConditionValue] = [conditions.autoscaling_condition(record, owners, self._is_frozen)]
        if (slo := conditions.slo_condition(record, history.attainment)) is not None:
            values.append(slo)
        now, instances = self._clock.now(), conditions.desired_instances(record)
        if not conditions.is_write_due(history.published, values, instances, now):
            return
        if not await self._apply(key, model, values):
            return
        if history.published is not None:
            for draft in events.condition_events(history.published.conditions, values):
                self._record_event(model, draft)
        history.published = PublishedStatus(tuple(values), now, instances)

    async def _apply(
        self, key: str, model: Manifest, values: "tuple[ConditionValue, ...] | list[ConditionValue]"
    ) -> bool:
        generation = int(metadata_of(model).get("generation") or 0)
        now = format_time(self._clock.wall())
        status = {"conditions": conditions_for(values, model.get("status") or {}, generation, now)}
        metadata = {
            name: metadata_of(model)[name] for name in ("name", "namespace", "uid") if name in metadata_of(model)
        }
        body = {"apiVersion": model["apiVersion"], "kind": model["kind"], "metadata": metadata, "status": status}
        try:
            await self._api.apply_status(body, AUTOSCALER_FIELD_MANAGER)
        except NotFound:
            return False
        except FairleadError as error:
            self.failures += 1
            _LOG.warning("the status of %s could not be written: %s", key, error)
            return False
        self.writes += 1
        return True

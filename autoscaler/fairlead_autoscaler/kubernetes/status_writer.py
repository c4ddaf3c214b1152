"""Status writer: the autoscaler's conditions in a model's status, under its own field manager, and
its events.

It gets every record, and writes in tasks of its own, so that no decision waits for a status. A
failed write is tried again later, with the status of that time. A model that is no longer scaled
loses its conditions. Models of one namespace are written one after the other, and no other
namespace waits for them.

Why: a namespace may have thousands of models of a megabyte, each of which takes the API server a
tenth of a second.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from fairlead.errors import FairleadError
from fairlead.fleet.labels import AUTOSCALER_FIELD_MANAGER
from fairlead.kube.client_protocol import KubeClient
from fairlead.kube.conditions import ConditionValue, conditions_for, format_time
from fairlead.kube.errors import NotFound
from fairlead.kube.events.event import EventDraft
from fairlead.kube.resources import Manifest, is_deleting, metadata_of
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_autoscaler.kubernetes import conditions
from fairlead_autoscaler.kubernetes.conditions import PublishedStatus
from fairlead_autoscaler.kubernetes.slo_attainment import SLOAttainment, add_observation
from fairlead_autoscaler.kubernetes.target import KubernetesTarget

_LOG = logging.getLogger("fairlead.autoscaler")
_WRITE_INTERVAL_SECONDS: Final = 1.0
_WRITE_WAIT_SECONDS: Final = 1.0
_CONCURRENT_WRITES: Final = 16


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
        models: KubernetesTarget,
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
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(_CONCURRENT_WRITES)

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
            for draft in conditions.scaling_events(history.last_record, record):
                self._record_event(model, draft)
        history.attainment = add_observation(history.attainment, record.observation)
        history.last_record = record

    async def run(self) -> None:
        """Writes statuses until it is cancelled. A defect here never affects scaling."""
        try:
            while True:
                try:
                    if self._is_leader():
                        await self.write_all()
                except Exception:  # noqa: BLE001  # it is logged, and the next round tries again
                    self.failures += 1
                    _LOG.exception("the statuses of the models could not be written")
                await self._pause(_WRITE_INTERVAL_SECONDS)
        finally:
            for writing in list(self._writing.values()):
                await cancel_and_wait(writing)

    async def write_all(self) -> None:
        """Writes the status of every model that is due, and removes the conditions of models not
        scaled.

        Waits a moment. Namespaces that still write then are not begun again before they end.
        """
        models, writers = self._models.models(), self._models.foreign_writers()
        namespaces: dict[str, list[str]] = {}
        for key in models:
            namespaces.setdefault(key.partition("/")[0], []).append(key)
        self._writing = {namespace: task for namespace, task in self._writing.items() if not task.done()}
        for namespace, keys in namespaces.items():
            if namespace not in self._writing:
                self._writing[namespace] = asyncio.ensure_future(self._write_namespace(keys, writers))
        if self._writing:
            await asyncio.wait(self._writing.values(), timeout=_WRITE_WAIT_SECONDS)
        for gone in self._histories.keys() - models.keys():
            del self._histories[gone]

    async def _write_namespace(self, keys: Iterable[str], writers: Mapping[str, Mapping[str, str]]) -> None:
        for key in keys:
            model = self._models.model(key)
            if model is None or is_deleting(model):
                continue
            if not self._is_leader():
                return
            try:
                await self._write_one(key, model, writers.get(key))
            except Exception:  # noqa: BLE001  # values of one model must not stop the others
                self.failures += 1
                _LOG.exception("the status of %s could not be written", key)

    async def _write_one(self, key: str, model: Manifest, owners: Mapping[str, str] | None) -> None:
        """Writes the status of one model.

        owners: the other owners of its numbers; None: it is not scaled.
        """
        history = self._histories.get(key)
        if owners is None:
            self._histories.pop(key, None)
            if conditions.has_own_condition(model.get("status") or {}):
                await self._apply(key, model, ())
        elif history is not None and history.last_record is not None:
            await self._write_model(key, model, history, history.last_record, owners)

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
            for draft in conditions.condition_events(history.published.conditions, values):
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
            async with self._slots:
                await self._api.apply_status(body, AUTOSCALER_FIELD_MANAGER)
        except NotFound:
            return False
        except FairleadError as error:
            self.failures += 1
            _LOG.warning("the status of %s could not be written: %s", key, error)
            return False
        self.writes += 1
        return True

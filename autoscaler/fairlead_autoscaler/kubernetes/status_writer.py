"""Tells people in the cluster: our two conditions in a model's status, under a field manager of our
own, and events.

It is shown every look, and writes by itself, so that no decision waits for a status. What could not
be written is written later, as it is then. A model that the autoscaler is not asked about any more
loses the conditions that it had.
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
    """The models as last heard of (``world.KubeWorld``)."""

    def models(self) -> Mapping[str, Manifest]:
        """By ``namespace/name``."""
        ...

    def model(self, key: str) -> Manifest | None:
        """One of them."""
        ...

    def foreign_writers(self) -> Mapping[str, Mapping[str, str]]:
        """Those that the autoscaler is asked about, and those that cannot be read: by pool, who
        else sets its number.
        """
        ...


@dataclass(slots=True)
class _ModelHistory:
    """What is kept of a model from look to look. ``wall`` is when the last was."""

    uid: str
    last_record: TickRecord | None = None
    attainment: SLOAttainment = field(default_factory=SLOAttainment)
    published: PublishedStatus | None = None


class StatusWriter:
    """``tell`` records an event; ``leads``: this process is the one that writes."""

    def __init__(
        self,
        api: KubeClient,
        models: ModelSource,
        clock: Clock,
        record_event: Callable[[Manifest, EventDraft], None],
        *,
        leads: Callable[[], bool],
        frozen: bool = False,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.writes = 0
        self.failures = 0
        self._api = api
        self._models = models
        self._clock = clock
        self._tell = record_event
        self._leads = leads
        self._frozen = frozen
        self._pause = pause
        self._histories: dict[str, _ModelHistory] = {}

    def on_record(self, record: TickRecord) -> None:
        """One look at one model."""
        key = record.model.name
        model = self._models.model(key)
        if model is None:
            self._histories.pop(key, None)
            return
        uid = str(metadata_of(model).get("uid", ""))
        known = self._histories.get(key)
        if known is None or known.uid != uid:
            known = self._histories[key] = _ModelHistory(uid)
        if known.last_record is not None and self._leads():
            for happening in events.scaling_events(known.last_record, record):
                self._tell(model, happening)
        known.attainment = add_observation(known.attainment, record.observation)
        known.last_record = record

    async def run(self) -> None:
        """Write what is due, until cancelled. A defect here costs what is told, never what is
        done.
        """
        while True:
            try:
                if self._leads():
                    await self.write_all()
            except Exception:  # noqa: BLE001  # it is logged, and the next round begins anew
                self.failures += 1
                _LOG.exception("what is done could not be told")
            await self._pause(_WRITE_INTERVAL_SECONDS)

    async def write_all(self) -> None:
        """Once, of every model."""
        models, standing = self._models.models(), self._models.foreign_writers()
        for key, model in models.items():
            if is_deleting(model):
                continue
            known = self._histories.get(key)
            if key not in standing:
                self._histories.pop(key, None)
                if conditions.has_own_condition(model.get("status") or {}):
                    await self._apply(key, model, ())
            elif known is not None and known.last_record is not None:
                await self._write_model(key, model, known, known.last_record, standing[key])
        for gone in self._histories.keys() - models.keys():
            del self._histories[gone]

    async def _write_model(
        self, key: str, model: Manifest, known: _ModelHistory, look: TickRecord, held: Mapping[str, str]
    ) -> None:
        said: list[ConditionValue] = [conditions.autoscaling_condition(look, held, self._frozen)]
        if (met := conditions.slo_condition(look, known.attainment)) is not None:
            said.append(met)
        now, numbers = self._clock.now(), conditions.desired_instances(look)
        if not conditions.is_write_due(known.published, said, numbers, now):
            return
        if not await self._apply(key, model, said):
            return
        if known.published is not None:
            for happening in events.condition_events(known.published.conditions, said):
                self._tell(model, happening)
        known.published = PublishedStatus(tuple(said), now, numbers)

    async def _apply(
        self, key: str, model: Manifest, said: "tuple[ConditionValue, ...] | list[ConditionValue]"
    ) -> bool:
        generation = int(metadata_of(model).get("generation") or 0)
        now = format_time(self._clock.wall())
        status = {"conditions": conditions_for(said, model.get("status") or {}, generation, now)}
        names = {name: metadata_of(model)[name] for name in ("name", "namespace", "uid") if name in metadata_of(model)}
        body = {"apiVersion": model["apiVersion"], "kind": model["kind"], "metadata": names, "status": status}
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

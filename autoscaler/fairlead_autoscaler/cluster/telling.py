"""Tells people in the cluster: our two conditions in a model's status, under a field manager of our own, and events.

It is shown every look, and writes by itself, so that no decision waits for a status. What could not be written is written later, as
it is then. A model that the autoscaler is not asked about any more loses the conditions that it had.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol

from fairlead.clock import Clock
from fairlead.cluster_labels import AUTOSCALER
from fairlead.errors import FairleadError
from fairlead.kube.errors import NotFound
from fairlead.kube.news import News
from fairlead.kube.resource import Manifest, leaving, metadata_of
from fairlead_autoscaler.cluster import conditions, happenings
from fairlead_autoscaler.cluster.attainment import Attainment, seen
from fairlead_autoscaler.cluster.conditions import Said, Written
from fairlead_autoscaler.recording import Look

_LOG = logging.getLogger("fairlead.autoscaler")
_ROUND_SECONDS: Final = 1.0


class Kube(Protocol):
    """As much of ``KubeApi`` as is needed here."""

    async def apply_status(self, manifest: Manifest, manager: str) -> Manifest:
        """Server-side apply of a status, by force. Raises NotFound."""
        ...


class Models(Protocol):
    """The models as last heard of (``world.KubeWorld``)."""

    def models(self) -> Mapping[str, Manifest]:
        """By ``namespace/name``."""
        ...

    def model(self, key: str) -> Manifest | None:
        """One of them."""
        ...

    def standing(self) -> Mapping[str, Mapping[str, str]]:
        """Those that the autoscaler is asked about, and those that cannot be read: by pool, who else sets its number."""
        ...


@dataclass(slots=True)
class _Known:
    """What is kept of a model from look to look. ``wall`` is when the last was."""

    uid: str
    look: Look | None = None
    attainment: Attainment = field(default_factory=Attainment)
    written: Written | None = None


class Telling:
    """``tell`` records an event; ``leads``: this process is the one that writes."""

    def __init__(
        self,
        api: Kube,
        models: Models,
        clock: Clock,
        tell: Callable[[Manifest, News], None],
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
        self._tell = tell
        self._leads = leads
        self._frozen = frozen
        self._pause = pause
        self._known: dict[str, _Known] = {}

    def keep(self, look: Look) -> None:
        """One look at one model."""
        key = look.model.name
        model = self._models.model(key)
        if model is None:
            self._known.pop(key, None)
            return
        uid = str(metadata_of(model).get("uid", ""))
        known = self._known.get(key)
        if known is None or known.uid != uid:
            known = self._known[key] = _Known(uid)
        if known.look is not None and self._leads():
            for happening in happenings.of_looks(known.look, look):
                self._tell(model, happening)
        known.attainment = seen(known.attainment, look.observation)
        known.look = look

    async def run(self) -> None:
        """Write what is due, until cancelled. A defect here costs what is told, never what is done."""
        while True:
            try:
                if self._leads():
                    await self.write()
            except Exception:  # noqa: BLE001  # it is logged, and the next round begins anew
                self.failures += 1
                _LOG.exception("what is done could not be told")
            await self._pause(_ROUND_SECONDS)

    async def write(self) -> None:
        """Once, of every model."""
        models, standing = self._models.models(), self._models.standing()
        for key, model in models.items():
            if leaving(model):
                continue
            known = self._known.get(key)
            if key not in standing:
                self._known.pop(key, None)
                if conditions.ours(model.get("status") or {}):
                    await self._apply(key, model, ())
            elif known is not None and known.look is not None:
                await self._said(key, model, known, known.look, standing[key])
        for gone in self._known.keys() - models.keys():
            del self._known[gone]

    async def _said(self, key: str, model: Manifest, known: _Known, look: Look, held: Mapping[str, str]) -> None:
        said: list[Said] = [conditions.autoscaling(look, held, self._frozen)]
        if (met := conditions.objectives_met(look, known.attainment)) is not None:
            said.append(met)
        now, numbers = self._clock.now(), conditions.wanted(look)
        if not conditions.due(known.written, said, numbers, now):
            return
        if not await self._apply(key, model, said):
            return
        if known.written is not None:
            for happening in happenings.of_conditions(known.written.said, said):
                self._tell(model, happening)
        known.written = Written(tuple(said), now, numbers)

    async def _apply(self, key: str, model: Manifest, said: "tuple[Said, ...] | list[Said]") -> bool:
        generation = int(metadata_of(model).get("generation") or 0)
        wall = datetime.fromtimestamp(self._clock.wall(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        status = conditions.status(said, model.get("status") or {}, generation, wall)
        names = {name: metadata_of(model)[name] for name in ("name", "namespace", "uid") if name in metadata_of(model)}
        body = {"apiVersion": model["apiVersion"], "kind": model["kind"], "metadata": names, "status": status}
        try:
            await self._api.apply_status(body, AUTOSCALER)
        except NotFound:
            return False
        except FairleadError as error:
            self.failures += 1
            _LOG.warning("the status of %s could not be written: %s", key, error)
            return False
        self.writes += 1
        return True

"""A process that scales: world, gateways, loop, recording and a port put together, from the start to the last tick."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fairlead.limits import Limits
from fairlead.runtime import process_tuning
from fairlead.runtime.aiohttp_server import serve
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait, first_failure
from fairlead_autoscaler.collector.gateway_scraper import GatewayScraper, HttpPageFetcher, resolve_name
from fairlead_autoscaler.control_loop import ControlLoop
from fairlead_autoscaler.core import ScalingCore
from fairlead_autoscaler.history.recorder import RecordBuffer, RecordFiles, TickRecord, encode_record
from fairlead_autoscaler.http.server import create_app
from fairlead_autoscaler.mix import SolverQueue, create_solver
from fairlead_autoscaler.target import ReplicaScaler, ScaleTarget

_LOG: Final = logging.getLogger("fairlead.autoscaler")


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """``gateways`` are the URLs of their management ports; ``record`` is a folder for a recording, None: it stays in memory.
    ``speed``: the clock that the process is given runs so much faster than the machine's. ``leads`` says whether this process is the
    one that writes; ``told`` is given every look."""

    world: ScaleTarget
    scaler: ReplicaScaler
    gateways: Sequence[str]
    host: str
    port: int
    token: str | None = None
    record: Path | None = None
    frozen: bool = False
    speed: float = 1.0
    leads: Callable[[], bool] = lambda: True
    notes: Callable[[], list[str]] = list
    on_tick: Callable[[TickRecord], None] = lambda _: None


class AutoscalerService:
    """Make it on the loop that it runs on. ``announce`` is given one line once the port is open."""

    def __init__(self, plan: ServiceConfig, clock: Clock, *, announce: Callable[[str], None], limits: Limits) -> None:
        self._plan = plan
        self._announce = announce
        self._stop = asyncio.Event()
        self._ring = RecordBuffer(limits)
        self._desk = SolverQueue(create_solver())
        self._files = None if plan.record is None else RecordFiles(plan.record, limits)
        self.control_loop = ControlLoop(
            plan.world,
            plan.scaler,
            GatewayScraper(
                plan.gateways,
                fetch=HttpPageFetcher(limits),
                resolve=resolve_name,
                clock=clock,
                limits=limits,
                speed=plan.speed,
            ),
            ScalingCore,
            clock=clock,
            limits=limits,
            on_record=self._record,
            frozen=plan.frozen,
            leads=plan.leads,
            mix_solver=self._desk,
            speed=plan.speed,
        )
        self._app = create_app(self.control_loop, self._ring, self.problems, clock, plan.token)

    def stop(self) -> None:
        """End; what was written stays as it is."""
        self._stop.set()

    def problems(self) -> list[str]:
        """What is wrong now, in words."""
        problem = None if self._files is None else self._files.problem
        return [*self.control_loop.notes(), *self._plan.notes(), *([] if problem is None else [problem])]

    async def run(self) -> None:
        """Until ``stop``. Raises OSError when the port is taken, and what a defect of the loop raised."""
        stopped = asyncio.ensure_future(self._stop.wait())
        ticking: asyncio.Task[None] | None = None
        try:
            async with serve(self._app, self._plan.host, self._plan.port) as address:
                process_tuning.freeze_heap()
                self._announce(f"ready http://{address}")
                ticking = asyncio.create_task(self.control_loop.run(), name="ticks")
                error = await first_failure([ticking], stopped)
                await cancel_and_wait(ticking)
                if error is not None:
                    raise error
        finally:
            await cancel_and_wait(stopped)
            await cancel_and_wait(ticking)
            self._desk.close()

    def _record(self, look: TickRecord) -> None:
        line = encode_record(look)
        self._ring.add(look, line)
        self._plan.on_tick(look)
        if self._files is not None:
            self._files.add(line)

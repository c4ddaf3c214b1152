"""Autoscaler service: scale target, gateways, control loop, recording and HTTP server as one
process.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fairlead.audit import AuditLog
from fairlead.limits import Limits
from fairlead.runtime import process_tuning
from fairlead.runtime.aiohttp_server import serve
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait, first_failure
from fairlead_autoscaler.collector.gateway_scraper import GatewayScraper, fetch_page, resolve_name
from fairlead_autoscaler.control_loop import ControlLoop, LoopOptions, LoopParts
from fairlead_autoscaler.core import ScalingCore
from fairlead_autoscaler.history.recorder import RecordBuffer, RecordFiles, TickRecord, encode_record
from fairlead_autoscaler.http.server import PortAccess, create_app
from fairlead_autoscaler.mix import SolverQueue, create_solver
from fairlead_autoscaler.target import ReplicaScaler, ScaleTarget

_LOG: Final = logging.getLogger("fairlead.autoscaler")


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """The configuration of an autoscaler service.

    gateways: URLs of their management ports.
    hosts: further DNS names under which clients reach the port.
    record: the directory of a recording; None: it stays in memory.
    speed: how many times as fast as the machine's clock the service's clock runs.
    is_leader: whether this process writes.
    notes: returns further problems, in words.
    on_tick: called with every record.
    audit: gets the changes that were written.
    """

    target: ScaleTarget
    scaler: ReplicaScaler
    gateways: Sequence[str]
    host: str
    port: int
    token: str | None = None
    hosts: Sequence[str] = ()
    record: Path | None = None
    is_frozen: bool = False
    speed: float = 1.0
    is_leader: Callable[[], bool] = lambda: True
    notes: Callable[[], list[str]] = list
    on_tick: Callable[[TickRecord], None] = lambda _: None
    audit: AuditLog | None = None


class AutoscalerService:
    """The autoscaler process. It is created on its event loop.

    announce: called with one line once the port is open.
    """

    def __init__(self, config: ServiceConfig, clock: Clock, *, announce: Callable[[str], None], limits: Limits) -> None:
        self._config = config
        self._announce = announce
        self._stop = asyncio.Event()
        self._buffer = RecordBuffer()
        self._solver = SolverQueue(create_solver())
        self._files = None if config.record is None else RecordFiles(config.record)
        gateways = GatewayScraper(
            config.gateways,
            fetch=fetch_page,
            resolve=resolve_name,
            clock=clock,
            speed=config.speed,
        )
        self.control_loop = ControlLoop(
            LoopParts(
                config.target,
                config.scaler,
                gateways,
                ScalingCore,
                self._record,
                self._solver,
                (lambda _: None) if config.audit is None else config.audit.add,
            ),
            LoopOptions(is_frozen=config.is_frozen, is_leader=config.is_leader, speed=config.speed),
            clock,
            limits,
        )
        self._app = create_app(
            self.control_loop, self._buffer, self.problems, clock, PortAccess(config.token, config.hosts)
        )

    def stop(self) -> None:
        self._stop.set()

    def problems(self) -> list[str]:
        """Returns all current problems, in words."""
        problem = None if self._files is None else self._files.problem
        audit = [] if self._config.audit is None else self._config.audit.warnings()
        return [*self.control_loop.notes(), *self._config.notes(), *([] if problem is None else [problem]), *audit]

    async def run(self) -> None:
        """Runs until `stop`. Raises OSError if the port is in use, and the error of a defect in the
        loop.
        """
        stopped = asyncio.ensure_future(self._stop.wait())
        ticking: asyncio.Task[None] | None = None
        try:
            async with serve(self._app, self._config.host, self._config.port) as address:
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
            self._solver.close()
            if self._config.audit is not None:
                await asyncio.to_thread(self._config.audit.close)

    def _record(self, record: TickRecord) -> None:
        line = encode_record(record)
        self._buffer.add(record, line)
        self._config.on_tick(record)
        if self._files is not None:
            self._files.add(line)

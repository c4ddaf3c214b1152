"""A process that scales: world, gateways, loop, recording and a port put together, from the start to the last tick."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from fairlead import system
from fairlead.clock import Clock
from fairlead.fleet import Scaler
from fairlead.limits import Limits
from fairlead.tasks import ended, failed
from fairlead_autoscaler.loop import Loop
from fairlead_autoscaler.management import application
from fairlead_autoscaler.mix import Desk, solver
from fairlead_autoscaler.reading import Gateways, HttpFetch, resolve
from fairlead_autoscaler.recording import Files, Look, Ring, line_of
from fairlead_autoscaler.scaling import Core
from fairlead_autoscaler.world import World

_LOG: Final = logging.getLogger("fairlead.autoscaler")


@dataclass(frozen=True, slots=True)
class Plan:
    """``gateways`` are the URLs of their management ports; ``record`` is a folder for a recording, None: it stays in memory.
    ``speed``: the clock that the process is given runs so much faster than the machine's. ``leads`` says whether this process is the
    one that writes; ``told`` is given every look."""

    world: World
    scaler: Scaler
    gateways: Sequence[str]
    host: str
    port: int
    token: str | None = None
    record: Path | None = None
    frozen: bool = False
    speed: float = 1.0
    leads: Callable[[], bool] = lambda: True
    notes: Callable[[], list[str]] = list
    told: Callable[[Look], None] = lambda _: None


class Process:
    """Make it on the loop that it runs on. ``announce`` is given one line once the port is open."""

    def __init__(self, plan: Plan, clock: Clock, *, announce: Callable[[str], None], limits: Limits) -> None:
        self._plan = plan
        self._announce = announce
        self._stop = asyncio.Event()
        self._fetch = HttpFetch(limits)
        self._ring = Ring(limits)
        self._desk = Desk(solver())
        self._files = None if plan.record is None else Files(plan.record, limits)
        self.loop = Loop(
            plan.world,
            plan.scaler,
            Gateways(plan.gateways, fetch=self._fetch, resolve=resolve, clock=clock, limits=limits, speed=plan.speed),
            Core,
            clock=clock,
            limits=limits,
            keep=self._keep,
            frozen=plan.frozen,
            leads=plan.leads,
            desk=self._desk,
            speed=plan.speed,
        )
        self._app = application(self.loop, self._ring, self.notes, clock, plan.token)

    def stop(self) -> None:
        """End; what was written stays as it is."""
        self._stop.set()

    def notes(self) -> list[str]:
        """What is wrong now, in words."""
        problem = None if self._files is None else self._files.problem
        return [*self.loop.notes(), *self._plan.notes(), *([] if problem is None else [problem])]

    async def run(self) -> None:
        """Until ``stop``. Raises OSError when the port is taken, and what a defect of the loop raised."""
        runner = web.AppRunner(self._app, access_log=None)  # probes ask every few seconds
        await runner.setup()
        stopped = asyncio.ensure_future(self._stop.wait())
        ticking: asyncio.Task[None] | None = None
        try:
            site = web.TCPSite(runner, self._plan.host or None, self._plan.port)
            await site.start()
            system.settled()
            self._announce(f"ready http://{_shown(runner)}")
            ticking = asyncio.create_task(self.loop.run(), name="ticks")
            error = await failed([ticking], stopped)
            if error is not None:
                raise error
        finally:
            await ended(stopped)
            await ended(ticking)
            await runner.cleanup()
            await self._fetch.close()
            self._desk.close()

    def _keep(self, look: Look) -> None:
        line = line_of(look)
        self._ring.add(look, line)
        self._plan.told(look)
        if self._files is not None:
            self._files.add(line)


def _shown(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

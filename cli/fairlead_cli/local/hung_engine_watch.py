"""The watch over engines of a stack that hang: it restarts them, one at a time.

A process that ends is restarted anyway. One whose core hangs does not end, and its `/health` says
200. The gateway finds out and reports it; the verdict is `fairlead.fleet.hung_engines`. Engines
that share a process are left alone, since a restart would end the requests of the others.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from fairlead.fleet.hung_engines import EjectionReport, hung_verdict
from fairlead.runtime.clock import Clock
from fairlead_cli.errors import StackUnreachable
from fairlead_cli.local.stack.engine_process import EngineProcess, SleepState

if TYPE_CHECKING:  # it loads an HTTP client, which a stack needs late
    from fairlead_cli.management import api_types

HUNG_ENGINE_GRACE_SECONDS: Final = 60.0
"""Limit: an engine that has answered no request for this long after its ejection is restarted by
local mode.
"""
HUNG_ENGINE_POLL_SECONDS: Final = 5.0
"""Limit: interval at which local mode asks its gateway about hung engines."""

_GATEWAY: Final = "gateway"


@dataclass(frozen=True, slots=True)
class HungEngine:
    """An engine to restart, and why."""

    engine: EngineProcess
    reason: str


@dataclass(frozen=True, slots=True)
class HungEngineHooks:
    """The functions of a stack that the watch calls.

    engines: returns the engines of the stack.

    fleet: returns the gateway's fleet. Raises StackUnreachable when the gateway does not answer.

    restart: ends the process of an engine, which is started again.

    on_event: called with a line for people.
    """

    engines: Callable[[], Sequence[EngineProcess]]
    fleet: "Callable[[], Awaitable[api_types.Fleet]]"
    restart: Callable[[EngineProcess], Awaitable[None]]
    on_event: Callable[[str], None]


class HungEngineWatch:
    """The watch over the engines of one stack."""

    def __init__(self, hooks: HungEngineHooks, clock: Clock) -> None:
        self._hooks = hooks
        self._clock = clock
        self._restarted: EngineProcess | None = None

    async def run(self) -> None:
        """Polls until it is cancelled."""
        while True:
            await asyncio.sleep(HUNG_ENGINE_POLL_SECONDS)
            await self.poll()

    async def poll(self) -> None:
        """Restarts an engine that hangs, unless the last one that was restarted is not up yet."""
        engines = self._hooks.engines()
        restarted = self._restarted
        if restarted is not None and restarted in engines and not restarted.is_up:
            return
        self._restarted = None
        try:
            fleet = await self._hooks.fleet()
        except StackUnreachable:
            return
        reports = {
            instance.id: instance.ejection
            for model in fleet.models
            for instance in model.instances
            if instance.ejection is not None
        }
        found = hung_engine(engines, reports, self._clock.now(), HUNG_ENGINE_GRACE_SECONDS)
        if found is not None:
            self._hooks.on_event(f"{found.engine.name} hangs and is restarted: {found.reason}")
            self._restarted = found.engine
            await self._hooks.restart(found.engine)


def hung_engine(
    engines: Iterable[EngineProcess], reports: Mapping[str, EjectionReport], now: float, grace_seconds: float
) -> HungEngine | None:
    """Returns the first engine that hangs; None if none does.

    reports: the gateway's reports, by instance id.
    """
    for engine in engines:
        report = reports.get(engine.instance_ids()[0])
        up_seconds = _up_seconds(engine, now)
        if report is None or up_seconds is None or len(engine.ports) > 1:
            continue
        # A report may be older than the process, if the gateway has missed its restart.
        report = replace(report, seconds=min(report.seconds, up_seconds))
        verdict = hung_verdict({_GATEWAY: report}, grace_seconds=grace_seconds)
        if verdict.is_hung:
            return HungEngine(engine, verdict.reason)
    return None


def _up_seconds(engine: EngineProcess, now: float) -> float | None:
    """Returns the seconds since the engine is up; None if it does not serve."""
    process = engine.process
    if process is None or process.ready_at is None or not engine.is_up:
        return None
    return None if engine.is_draining or engine.sleep_state is not SleepState.AWAKE else now - process.ready_at

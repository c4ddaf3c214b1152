"""Puts the engines of a stack to sleep and wakes them, one process at a time each.

Asleep: the gateway is told first (Draining), is seen to know it and to have finished there, then the engine is. Awake: the engine is
woken, says so and is well, then the gateway is told. Who changes his mind while an engine falls asleep has it back at once. An
engine that cannot be woken is killed, and started anew as one that died; one that dies asleep is awake when it is back. Nothing
is remembered that an engine does not have: how it is, is asked of it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from fairlead.clock import Clock
from fairlead.errors import FairleadError
from fairlead_cli.local.keeper import Phase
from fairlead_cli.local.pool import EngineUnit, Rest
from fairlead_cli.local.probe import until


class Bed(Protocol):
    """As much of ``fairlead.engines.sleep.Bedside`` as is needed here."""

    async def sleep(self, url: str, level: int) -> None:
        """Asleep when this returns. Raises Unavailable when it is not."""
        ...

    async def wake(self, url: str, level: int) -> None:
        """Awake and well when this returns. Raises Unavailable when it is not."""
        ...


class Beds:
    """``idle`` says whether the gateway sends nothing to an engine and has nothing there; ``changed`` is called at every step,
    ``failed`` with an engine that would not sleep."""

    def __init__(
        self,
        bed: Bed,
        idle: Callable[[EngineUnit], Awaitable[bool]],
        clock: Clock,
        *,
        changed: Callable[[], None],
        told: Callable[[str], None],
        failed: Callable[[EngineUnit], None],
        kill: Callable[[EngineUnit], Awaitable[None]],
    ) -> None:
        self._bed = bed
        self._idle = idle
        self._clock = clock
        self._changed = changed
        self._told = told
        self._failed = failed
        self._kill = kill
        self._tasks: dict[EngineUnit, asyncio.Task[None]] = {}

    def want(self, unit: EngineUnit, *, asleep: bool) -> None:
        """It is to sleep, or to be awake; returns at once."""
        unit.to_sleep = asleep
        under_way = self._tasks.get(unit)
        if under_way is None or under_way.done():
            self._tasks[unit] = asyncio.get_running_loop().create_task(self._follow(unit), name=f"rest-{unit.name}")

    def over(self, unit: EngineUnit) -> None:
        """Its process ended, or is to end: whatever it was, it is not asleep any more."""
        unit.rest, unit.to_sleep = Rest.AWAKE, False
        task = self._tasks.pop(unit, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def close(self) -> None:
        """Leave every engine as it is."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, unit: EngineUnit) -> None:
        """Until it is as it is wanted."""
        while True:
            if (
                unit.to_sleep
                and unit.rest is Rest.AWAKE
                and unit.keeper is not None
                and unit.keeper.phase is Phase.READY
            ):
                await self._fall(unit)
            elif not unit.to_sleep and unit.rest is Rest.ASLEEP:
                await self._wake(unit)
            else:
                return

    async def _fall(self, unit: EngineUnit) -> None:
        self._enter(unit, Rest.FALLING)
        await until(lambda: self._let_go(unit))
        if not unit.to_sleep:
            self._enter(unit, Rest.AWAKE)
            return
        level = unit.plan.sleep_level
        assert level is not None
        try:
            for url in unit.urls():
                await self._bed.sleep(url, level)
        except FairleadError as error:
            self._told(f"{unit.name} does not sleep: {error}")
            unit.to_sleep = False
            self._failed(unit)
            return
        self._told(f"{unit.name} sleeps")
        self._enter(unit, Rest.ASLEEP)

    async def _let_go(self, unit: EngineUnit) -> bool:
        return not unit.to_sleep or await self._idle(unit)

    async def _wake(self, unit: EngineUnit) -> None:
        began = self._clock.now()
        self._enter(unit, Rest.WAKING)
        level = unit.plan.sleep_level
        assert level is not None
        try:
            for url in unit.urls():
                await self._bed.wake(url, level)
        except FairleadError as error:
            self._told(f"{unit.name} does not wake and is started anew: {error}")
            await self._kill(unit)
            return
        unit.wakings += 1
        unit.wake_seconds = self._clock.now() - began
        self._told(f"{unit.name} is awake")
        self._enter(unit, Rest.AWAKE)

    def _enter(self, unit: EngineUnit, rest: Rest) -> None:
        unit.rest = rest
        self._changed()

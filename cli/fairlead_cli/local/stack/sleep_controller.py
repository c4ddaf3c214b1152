"""The sleep controller of a stack: puts engines to sleep and wakes them, one task for each engine.

To sleep: the fleet file says Draining, the gateway has stopped routing and has nothing in flight,
then the engine sleeps. To wake: the engine wakes and is healthy, then the fleet file says so. A
change of mind while an engine falls asleep takes effect at once. An engine that does not wake is
killed and restarted; a restarted engine is awake. The state is always asked of the engine.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from fairlead.errors import FairleadError
from fairlead.runtime.clock import Clock
from fairlead_cli.local.processes.managed_process import ProcessPhase
from fairlead_cli.local.processes.readiness_probe import wait_until
from fairlead_cli.local.stack.engine_process import EngineProcess, SleepState


class SleepCalls(Protocol):
    """The calls of ``fairlead.engines.sleep`` that the controller uses."""

    async def sleep(self, url: str, level: int) -> None:
        """Returns once the engine sleeps. Raises Unavailable when it does not."""
        ...

    async def wake(self, url: str, level: int) -> None:
        """Returns once the engine is awake and healthy. Raises Unavailable when it is not."""
        ...


class SleepController:
    """Controller of all engines.

    is_idle: whether the gateway routes nothing to an engine and has nothing in flight there.

    on_change: called at every step.

    on_rejected: called with an engine that rejected sleep.
    """

    def __init__(
        self,
        calls: SleepCalls,
        is_idle: Callable[[EngineProcess], Awaitable[bool]],
        clock: Clock,
        *,
        on_change: Callable[[], None],
        on_event: Callable[[str], None],
        on_rejected: Callable[[EngineProcess], None],
        kill: Callable[[EngineProcess], Awaitable[None]],
    ) -> None:
        self._calls = calls
        self._is_idle = is_idle
        self._clock = clock
        self._on_change = on_change
        self._on_event = on_event
        self._on_rejected = on_rejected
        self._kill = kill
        self._tasks: dict[EngineProcess, asyncio.Task[None]] = {}

    def set_desired(self, unit: EngineProcess, *, asleep: bool) -> None:
        """Sets whether an engine should sleep; returns at once."""
        unit.should_sleep = asleep
        under_way = self._tasks.get(unit)
        if under_way is None or under_way.done():
            self._tasks[unit] = asyncio.get_running_loop().create_task(self._follow(unit), name=f"rest-{unit.name}")

    def forget(self, unit: EngineProcess) -> None:
        """Resets an engine whose process ended or is to end: it does not sleep any more."""
        unit.sleep_state, unit.should_sleep = SleepState.AWAKE, False
        task = self._tasks.pop(unit, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def close(self) -> None:
        """Stops all tasks; engines stay as they are."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, unit: EngineProcess) -> None:
        """Works until the engine is in the desired state."""
        while True:
            if (
                unit.should_sleep
                and unit.sleep_state is SleepState.AWAKE
                and unit.process is not None
                and unit.process.phase is ProcessPhase.READY
            ):
                await self._fall(unit)
            elif not unit.should_sleep and unit.sleep_state is SleepState.ASLEEP:
                await self._wake(unit)
            else:
                return

    async def _fall(self, unit: EngineProcess) -> None:
        self._enter(unit, SleepState.FALLING_ASLEEP)
        await wait_until(lambda: self._let_go(unit))
        if not unit.should_sleep:
            self._enter(unit, SleepState.AWAKE)
            return
        level = unit.pool.sleep_level
        assert level is not None
        try:
            for url in unit.urls():
                await self._calls.sleep(url, level)
        except FairleadError as error:
            self._on_event(f"{unit.name} does not sleep: {error}")
            unit.should_sleep = False
            self._on_rejected(unit)
            return
        self._on_event(f"{unit.name} sleeps")
        self._enter(unit, SleepState.ASLEEP)

    async def _let_go(self, unit: EngineProcess) -> bool:
        return not unit.should_sleep or await self._is_idle(unit)

    async def _wake(self, unit: EngineProcess) -> None:
        began = self._clock.now()
        self._enter(unit, SleepState.WAKING)
        level = unit.pool.sleep_level
        assert level is not None
        try:
            for url in unit.urls():
                await self._calls.wake(url, level)
        except FairleadError as error:
            self._on_event(f"{unit.name} does not wake and is restarted: {error}")
            await self._kill(unit)
            return
        unit.wake_count += 1
        unit.wake_seconds = self._clock.now() - began
        self._on_event(f"{unit.name} is awake")
        self._enter(unit, SleepState.AWAKE)

    def _enter(self, unit: EngineProcess, rest: SleepState) -> None:
        unit.sleep_state = rest
        self._on_change()

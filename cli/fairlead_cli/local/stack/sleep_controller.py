"""The sleep controller of a stack: puts engines to sleep and wakes them, one task for each engine.

To sleep: the fleet file says Draining, the gateway has stopped routing and has nothing in flight,
then the engine sleeps. To wake: the engine wakes and is healthy, then the fleet file says so. A
recall while an engine falls asleep takes effect at once. An engine that does not wake is killed and
restarted; a restarted engine is awake.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class SleepHooks:
    """The supervisor's functions that the controller calls.

    is_idle: whether the gateway routes nothing to an engine and has nothing in flight there.

    kill: ends the process of an engine that does not wake.

    on_change: called at every step.

    on_event: called with a line for people.

    on_rejected: called with an engine that rejected sleep.
    """

    is_idle: Callable[[EngineProcess], Awaitable[bool]]
    kill: Callable[[EngineProcess], Awaitable[None]]
    on_change: Callable[[], None]
    on_event: Callable[[str], None]
    on_rejected: Callable[[EngineProcess], None]


class SleepController:
    """The controller of the sleep states of all engines."""

    def __init__(self, calls: SleepCalls, clock: Clock, hooks: SleepHooks) -> None:
        self._calls = calls
        self._clock = clock
        self._hooks = hooks
        self._tasks: dict[EngineProcess, asyncio.Task[None]] = {}

    def set_desired(self, engine: EngineProcess, *, asleep: bool) -> None:
        """Sets whether an engine should sleep; returns at once."""
        engine.should_sleep = asleep
        task = self._tasks.get(engine)
        if task is None or task.done():
            self._tasks[engine] = asyncio.get_running_loop().create_task(
                self._reach_desired_state(engine), name=f"sleep-{engine.name}"
            )

    def forget(self, engine: EngineProcess) -> None:
        """Resets an engine whose process ended or is to end: it does not sleep any more."""
        engine.sleep_state, engine.should_sleep = SleepState.AWAKE, False
        task = self._tasks.pop(engine, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def close(self) -> None:
        """Stops all tasks; engines stay as they are."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _reach_desired_state(self, engine: EngineProcess) -> None:
        """Puts an engine to sleep or wakes it, until its state is as desired or it is not ready to
        sleep.
        """
        while True:
            if (
                engine.should_sleep
                and engine.sleep_state is SleepState.AWAKE
                and engine.process is not None
                and engine.process.phase is ProcessPhase.READY
            ):
                await self._put_to_sleep(engine)
            elif not engine.should_sleep and engine.sleep_state is SleepState.ASLEEP:
                await self._wake(engine)
            else:
                return

    async def _put_to_sleep(self, engine: EngineProcess) -> None:
        self._set_state(engine, SleepState.FALLING_ASLEEP)
        await wait_until(lambda: self._is_idle_or_recalled(engine))
        if not engine.should_sleep:
            self._set_state(engine, SleepState.AWAKE)
            return
        level = engine.pool.sleep_level
        assert level is not None
        try:
            for url in engine.urls():
                await self._calls.sleep(url, level)
        except FairleadError as error:
            self._hooks.on_event(f"{engine.name} does not sleep: {error}")
            engine.should_sleep = False
            self._hooks.on_rejected(engine)
            return
        self._hooks.on_event(f"{engine.name} sleeps")
        self._set_state(engine, SleepState.ASLEEP)

    async def _is_idle_or_recalled(self, engine: EngineProcess) -> bool:
        return not engine.should_sleep or await self._hooks.is_idle(engine)

    async def _wake(self, engine: EngineProcess) -> None:
        started = self._clock.now()
        self._set_state(engine, SleepState.WAKING)
        level = engine.pool.sleep_level
        assert level is not None
        try:
            for url in engine.urls():
                await self._calls.wake(url, level)
        except FairleadError as error:
            self._hooks.on_event(f"{engine.name} does not wake and is restarted: {error}")
            await self._hooks.kill(engine)
            return
        engine.wake_count += 1
        engine.wake_seconds = self._clock.now() - started
        self._hooks.on_event(f"{engine.name} is awake")
        self._set_state(engine, SleepState.AWAKE)

    def _set_state(self, engine: EngineProcess, state: SleepState) -> None:
        engine.sleep_state = state
        self._hooks.on_change()

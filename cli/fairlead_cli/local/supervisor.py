"""Runs a stack: Redis, indexer, autoscaler, gateway and engines as child processes, and the fleet file that tells of them.

Everything starts at once. The file is rewritten at every step of an engine: Starting → Ready → Draining, and absent while it is
dead. Any process that dies is started again with growing pauses; losing Redis costs hit rate only, so service goes on.
Scaling down never loses a request: Draining is written, the gateway is seen to know it and to have finished there, then SIGTERM,
or sleep, where so many are to sleep (``beds``).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fairlead.clock import Clock
from fairlead.errors import BadInput
from fairlead.fleet import Fleet, Instance, Model
from fairlead.fleetfile import write_atomic
from fairlead.units import duration
from fairlead_cli.errors import StartFailed
from fairlead_cli.local.beds import Bed, Beds
from fairlead_cli.local.child import Child, Command
from fairlead_cli.local.embedded_redis import RedisServer
from fairlead_cli.local.guard import Guard
from fairlead_cli.local.keeper import Keeper, Phase
from fairlead_cli.local.pool import EngineUnit, PoolPlan, Rest
from fairlead_cli.local.ports import free_ports
from fairlead_cli.local.probe import http_status, redis_pong, until

FINISH_SECONDS = 5.0
"""How long requests in flight may go on when the stack is stopped."""
ENGINE_STOP_SECONDS = 3.0
REDIS_STOP_SECONDS = 2.0
DRAIN_SEEN_SECONDS = 10.0
GIVE_UP_STARTS = 3
"""A process that ended this often without having been ready once will not come up at all."""


class Routes(Protocol):
    """What the supervisor asks the gateway when it drains an instance."""

    async def knows_draining(self, instance_id: str) -> bool:
        """Does the gateway route nothing there any more?"""
        ...

    async def in_flight(self, instance_id: str) -> int:
        """Requests of the gateway that this instance is working on."""
        ...


@dataclass(frozen=True, slots=True)
class StackPlan:
    """All that a stack consists of. ``gateway`` gets the fleet file's path in its command already."""

    pools: tuple[PoolPlan, ...]
    gateway: Command
    manage_url: str
    fleet_file: Path
    redis: RedisServer | None = None
    indexer: Command | None = None
    autoscaler: Command | None = None
    logs: Path | None = None

    @property
    def models(self) -> tuple[Model, ...]:
        """The models served, each once, in the order of the manifests."""
        return tuple({pool.model.key: pool.model for pool in self.pools}.values())


class Supervisor:
    """``told`` gets one line for people at every event; ``routes`` is the gateway as seen over its management API, ``bed`` how
    engines are put to sleep (None: none is). ``changed`` is called at every step of an engine; ``desired`` are the numbers asked
    for, by model and pool, and ``asleep`` those to sleep beside them."""

    def __init__(
        self,
        plan: StackPlan,
        *,
        guard: Guard,
        clock: Clock,
        routes: Routes,
        told: Callable[[str], None],
        drain_seconds: float = 60.0,
        bed: Bed | None = None,
    ) -> None:
        self.plan = plan
        self.units: list[EngineUnit] = []
        self.gateway: Keeper | None = None
        self.redis: Keeper | None = None
        self.indexer: Keeper | None = None
        self.autoscaler: Keeper | None = None
        self.desired = {pool.key: pool.replicas for pool in plan.pools}
        self.asleep = {pool.key: 0 for pool in plan.pools}
        self.changed: Callable[[], None] = _nobody
        self._guard = guard
        self._clock = clock
        self._routes = routes
        self._told = told
        self._drain_seconds = drain_seconds
        self._news = asyncio.Event()
        self._stopping = False
        self._last_fleet: Fleet | None = None
        self._watch: asyncio.Task[None] | None = None
        self._drains: set[asyncio.Task[None]] = set()
        self._sleepless: set[tuple[str, str]] = set()
        self._beds: Beds | None = None
        if bed is not None:
            self._beds = Beds(
                bed,
                self._idle,
                clock,
                changed=self._write_fleet,
                told=told,
                failed=self._refused,
                kill=self._kill,
            )

    # --- start -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start every process, all at once; returns before any is ready."""
        sizes = [size for pool in self.plan.pools for size in pool.sizes()]
        ports = iter(free_ports(sizes))
        for pool in self.plan.pools:
            first = 0
            for size in pool.sizes():
                self.units.append(EngineUnit(pool, first, next(ports)))
                first += size
        self._write_fleet()
        for unit in self.units:
            self._keep_engine(unit)
        self.gateway = self._keep("gateway", lambda: self.plan.gateway, self._gateway_ready)
        if self.plan.redis is not None:
            server = self.plan.redis
            self.redis = self._keep("redis", lambda: _fresh(server), lambda _: _redis_ready(server))
        if (indexer := self.plan.indexer) is not None:
            self.indexer = self._keep("indexer", lambda: indexer, _says_ready)
        if (autoscaler := self.plan.autoscaler) is not None:
            self.autoscaler = self._keep("autoscaler", lambda: autoscaler, _says_ready)
        self._watch = asyncio.get_running_loop().create_task(self._watch_guard(), name="watch-guard")

    async def ready(self) -> None:
        """Wait until requests are served: the gateway answers and every engine is up, or has failed while another is up.

        Raises StartFailed when the gateway, or every engine of some model, keeps ending before it is ready.
        """
        while True:
            self._news.clear()
            for keepers in self._indispensable():
                if all(not keeper.ever_ready and keeper.failures >= GIVE_UP_STARTS for keeper in keepers):
                    raise _start_failed(keepers[0])
            if self._settled():
                return
            await self._news.wait()

    def _indispensable(self) -> Iterable[list[Keeper]]:
        """Groups of processes of which one at least must run."""
        if self.gateway is not None:
            yield [self.gateway]
        adopting = {pool.model.key for pool in self.plan.pools if pool.adopted}
        for model in self.plan.models:
            ours = [unit.keeper for unit in self.units if unit.plan.model.key == model.key and unit.keeper]
            if ours and model.key not in adopting:  # else it is served, whatever becomes of ours, or begins with none
                yield ours

    def _settled(self) -> bool:
        engines = [unit.keeper for unit in self.units if unit.keeper]
        tried = all(keeper.ever_ready or keeper.failures for keeper in engines)
        served = all(any(keeper.phase is Phase.READY for keeper in group) for group in self._indispensable())
        return tried and served

    def _keep_engine(self, unit: EngineUnit) -> None:
        unit.keeper = self._keep(unit.name, unit.command, lambda child: _engine_ready(unit, child))

    def _keep(self, name: str, command: Callable[[], Command], ready: Callable[[Child], Awaitable[None]]) -> Keeper:
        log = self.plan.logs / f"{name.replace('/', '.')}.log" if self.plan.logs else None
        keeper = Keeper(name, command, ready, guard=self._guard, clock=self._clock, changed=self._changed, log=log)
        keeper.start()
        return keeper

    async def _gateway_ready(self, child: Child) -> None:
        await until(lambda: _answers(f"{self.plan.manage_url}/readyz"))

    # --- changes -----------------------------------------------------------------------------------------------------

    def _changed(self, keeper: Keeper) -> None:
        unit = next((one for one in self.units if one.keeper is keeper), None)
        if unit is not None and self._beds is not None:
            if keeper.phase is not Phase.READY:
                self._beds.over(unit)
            elif not self._stopping and self.asleep[unit.plan.key]:
                self._arrange(unit.plan, ())  # it may have been started to sleep
        self._write_fleet()
        if keeper.phase is Phase.WAITING and not self._stopping:
            when = duration(keeper.pause_seconds)
            self._told(f"{keeper.name} ended ({keeper.ended}); again in {when}{_last_words(keeper)}")
        elif keeper.phase is Phase.READY:
            self._told(f"{keeper.name} is ready" + (f" again (restart {keeper.restarts})" if keeper.restarts else ""))
        self._news.set()

    def fleet(self) -> Fleet:
        """The fleet as it is now."""
        by_model: dict[str, list[Instance]] = {model.key: [] for model in self.plan.models}
        for pool in self.plan.pools:
            by_model[pool.model.key].extend(pool.adopted)
        for unit in self.units:
            by_model[unit.plan.model.key].extend(unit.instances())
        return Fleet(
            models={model.key: model for model in self.plan.models},
            instances={key: tuple(sorted(found, key=lambda one: one.id)) for key, found in by_model.items()},
        )

    def _write_fleet(self) -> None:
        fleet = self.fleet()
        if fleet != self._last_fleet:
            with contextlib.suppress(FileNotFoundError):  # the run directory is gone: we are being swept away
                write_atomic(self.plan.fleet_file, fleet)
            self._last_fleet = fleet
        self.changed()

    async def _watch_guard(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if self._guard.replace_if_dead():
                self._told("the guard process ended; another one watches now")

    # --- scale and drain ---------------------------------------------------------------------------------------------

    async def scale(self, key: str, pool: str, replicas: int, leaving: Sequence[str] = (), asleep: int = 0) -> None:
        """Bring one pool to ``replicas`` engines that serve and ``asleep`` that sleep; shrinking waits until the last request there
        is finished. Those named first in ``leaving`` go first, and those it does not name before them, the latest first."""
        plan = next((plan for plan in self.plan.pools if plan.key == (key, pool)), None)
        if plan is None:
            raise BadInput(f"no pool {pool!r} of {key}", field="pool")
        if plan.adopted:
            raise BadInput("engines that somebody else runs are not scaled", field="replicas")
        if plan.engines_per_process > 1:
            raise BadInput(
                "engines that share a process are not scaled", field="replicas", hint="start without grouping"
            )
        self.desired[key, pool] = max(replicas, 0)
        sleeps = self._beds is not None and plan.sleep_level is not None and plan.key not in self._sleepless
        self.asleep[key, pool] = max(asleep, 0) if sleeps else 0
        drains = self._arrange(plan, leaving)
        self.changed()
        await asyncio.gather(*drains)

    def _arrange(self, plan: PoolPlan, leaving: Sequence[str]) -> set[asyncio.Task[None]]:
        """Begin what makes a pool as it is wanted; the drains that this takes. Who sleeps is woken before anybody starts, and who is
        not to serve sleeps before anybody ends."""
        replicas, asleep = self.desired[plan.key], self.asleep[plan.key]
        rank = {name: number for number, name in enumerate(reversed(leaving))}
        units = sorted(
            self._units(*plan.key), key=lambda unit: (unit.name not in rank, rank.get(unit.name, 0), unit.first)
        )
        serving = [unit for unit in units if not unit.to_sleep]
        resting = sorted((unit for unit in units if unit.to_sleep), key=lambda unit: unit.rest is not Rest.FALLING)
        up = sum(unit.up for unit in serving)
        for unit in resting[: max(0, replicas - up)]:
            serving.append(self._turned(unit, asleep=False))
        resting = [unit for unit in resting if unit.to_sleep]
        starting = [unit for unit in serving if not unit.up]
        spare = list(reversed([unit for unit in serving if unit.up][replicas:]))
        for unit in [one for one in spare if one.rest is Rest.AWAKE][: max(0, asleep - len(resting))]:
            spare.remove(unit)
            resting.append(self._turned(unit, asleep=True))
        # What still starts is let come up as far as there is room, awake or asleep.
        going = [*reversed(starting), *resting[asleep:], *spare]
        over = going[: max(0, len(units) - replicas - asleep)]
        self._start_more(plan, replicas + asleep - len(units) + len(over))
        drains = {asyncio.get_running_loop().create_task(self.drain(unit)) for unit in over}
        self._drains |= drains
        for task in drains:
            task.add_done_callback(self._drains.discard)
        return drains

    def _turned(self, unit: EngineUnit, *, asleep: bool) -> EngineUnit:
        assert self._beds is not None
        self._beds.want(unit, asleep=asleep)
        return unit

    def _start_more(self, plan: PoolPlan, count: int) -> None:
        taken = {unit.first for unit in self.units if unit.plan.key == plan.key}
        fresh = [n for n in range(max(0, count) + len(taken)) if n not in taken][: max(0, count)]
        for number, ports in zip(fresh, free_ports([1] * len(fresh)), strict=True):
            unit = EngineUnit(plan, number, ports)
            self.units.append(unit)
            self._keep_engine(unit)

    def _refused(self, unit: EngineUnit) -> None:
        """An engine refused to sleep; so will its like. They end instead."""
        self._sleepless.add(unit.plan.key)
        self.asleep[unit.plan.key] = 0
        unit.rest = Rest.AWAKE
        self._arrange(unit.plan, (unit.name,))
        self._write_fleet()

    async def _kill(self, unit: EngineUnit) -> None:
        """End its process; its keeper starts another."""
        if unit.keeper is not None and unit.keeper.child is not None:
            await unit.keeper.child.stop(ENGINE_STOP_SECONDS)

    async def _idle(self, unit: EngineUnit) -> bool:
        """Does the gateway send nothing there, and have nothing there?"""
        ids = unit.ids()
        return await self._all_know(ids) and await self._all_idle(ids)

    def _units(self, key: str, pool: str) -> list[EngineUnit]:
        return [unit for unit in self.units if unit.plan.key == (key, pool) and not unit.draining]

    async def drain(self, unit: EngineUnit) -> None:
        """Take one engine process out of service without losing a request, then end it."""
        keeper = unit.keeper
        assert keeper is not None
        ids = [one.id for one in unit.instances()]
        unit.draining = True
        if self._beds is not None:
            self._beds.over(unit)
        keeper.retire()
        self._write_fleet()
        self._told(f"{unit.name} drains")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SEEN_SECONDS):
                await until(lambda: self._all_know(ids))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_seconds):
                await until(lambda: self._all_idle(ids))
        await keeper.stop(ENGINE_STOP_SECONDS)
        self.units.remove(unit)
        self._write_fleet()
        self._told(f"{unit.name} has left")

    async def _all_know(self, ids: Sequence[str]) -> bool:
        if self.gateway is None or self.gateway.phase is not Phase.READY:
            return True  # nobody routes; whoever comes next reads the file as it is now
        return all([await self._routes.knows_draining(one) for one in ids])

    async def _all_idle(self, ids: Sequence[str]) -> bool:
        return not any([await self._routes.in_flight(one) for one in ids])

    # --- stop --------------------------------------------------------------------------------------------------------

    async def stop(self, hurry: asyncio.Event) -> None:
        """Gateway first (it finishes what is in flight, for a few seconds), then engines, then Redis; ``hurry`` ends waiting."""
        self._stopping = True
        if self._watch is not None:
            self._watch.cancel()
        if self._beds is not None:
            await self._beds.close()
        stopping = asyncio.ensure_future(self._stop_in_order())
        hurried = asyncio.ensure_future(hurry.wait())
        waits: set[asyncio.Future[object]] = {stopping, hurried}  # type: ignore[arg-type]  # Future is invariant
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not stopping.done():
            for keeper in self.keepers():
                keeper.kill()
        await stopping

    async def _stop_in_order(self) -> None:
        engines = [unit.keeper for unit in self.units if unit.keeper]
        for helper in (*engines, self.redis, self.indexer, self.autoscaler):
            if helper is not None:
                helper.retire()
        if self.gateway is not None:
            await self.gateway.stop(FINISH_SECONDS)
        last = [*engines, *(helper for helper in (self.indexer, self.autoscaler) if helper is not None)]
        await asyncio.gather(*(keeper.stop(ENGINE_STOP_SECONDS) for keeper in last))
        if self.redis is not None:
            await self.redis.stop(REDIS_STOP_SECONDS)

    def keepers(self) -> list[Keeper]:
        """Every kept process: gateway, Redis, indexer, autoscaler, engines."""
        helpers = (self.gateway, self.redis, self.indexer, self.autoscaler)
        return [keeper for keeper in (*helpers, *(unit.keeper for unit in self.units)) if keeper is not None]


def _nobody() -> None:
    """Nobody is told of changes."""


async def _answers(url: str) -> bool:
    return await http_status(url) is not None


async def _healthy(url: str) -> bool:
    return await http_status(f"{url}/health") == 200


async def _engine_ready(unit: EngineUnit, child: Child) -> None:
    if unit.plan.says_ready:
        await child.said_ready(len(unit.ports))
    else:
        await until(lambda: _all_healthy(unit.urls()), 0.25)


async def _all_healthy(urls: Sequence[str]) -> bool:
    return all([await _healthy(url) for url in urls])


async def _says_ready(child: Child) -> None:
    await child.said_ready()


def _fresh(server: RedisServer) -> Command:
    """A socket that a killed server left behind is removed, so that nobody waits at it."""
    if server.socket_path:
        Path(server.socket_path).unlink(missing_ok=True)
    return Command(server.command)


async def _redis_ready(server: RedisServer) -> None:
    await until(lambda: redis_pong(server.socket_path, server.port))


def _last_words(keeper: Keeper) -> str:
    lines = keeper.child.last_lines if keeper.child and not keeper.ever_ready else ()
    return "".join(f"\n    {line}" for line in list(lines)[-3:])


def _start_failed(keeper: Keeper) -> StartFailed:
    lines = list(keeper.child.last_lines)[-12:] if keeper.child else []
    said = "".join(f"\n    {line}" for line in lines) or " it said nothing"
    return StartFailed(f"{keeper.name} does not start: {keeper.ended}; its last words:{said}")

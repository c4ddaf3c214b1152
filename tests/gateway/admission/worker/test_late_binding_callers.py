"""Assigned requests of several callers: credit decides between them, and each has its bound."""

import asyncio
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead.tenants.model import Tenant, Tier
from fairlead_gateway.admission.admission_policy import POLL_SECONDS
from fairlead_gateway.admission.fair_share import FairShare
from fairlead_gateway.admission.worker.admission_queue import LateBindingQueue
from fairlead_gateway.admission.worker.model_admission import ModelAdmission
from fairlead_gateway.errors import Overloaded, RequestShed
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.router_registry import RoleRouters
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.tenants.worker.tenant_policy import NO_TENANT, TenantPolicy

pytestmark = pytest.mark.simulated

KEY = "default/tiny"


class OneEngine:
    """The routers of a model with one engine, which is busy until `finish` is called.

    Requests without credit rules would go by number, the smallest first.
    """

    queues_assigned = True

    def __init__(self) -> None:
        load = SimpleNamespace(backlog_seconds=0.0, waiting=0, queued=0)
        self.instance = SimpleNamespace(id="e", load=load, full_step_seconds=1.0)
        self.sort_count = 0

    def router(self, key: str) -> "OneEngine":
        return self

    def endpoint(self, name: str) -> Any:
        return self.instance

    def ready_instances(self, key: str) -> dict[str, object]:
        return {"e": self.instance}

    def drain_seconds(self, key: str) -> int:
        return 7

    def queue_sort_key(self, request_id: str) -> tuple[float, float, str]:
        self.sort_count += 1
        return float(request_id.partition("/")[2]), 0.0, request_id

    def on_dispatch(self, request: Any, name: str, now: float) -> None:
        self.instance.load.backlog_seconds += 1.0
        self.instance.load.waiting += 1

    def on_queued(self, name: str, change: int) -> None:
        self.instance.load.queued += change

    def on_abandoned(self, request_id: str, now: float, *, is_computed: bool = True) -> None:
        self.instance.load.backlog_seconds -= 1.0
        self.instance.load.waiting -= 1


class AnyMemory:
    """The admission of a model whose callers are distinguished, and whose engine has memory."""

    def __init__(self) -> None:
        self.fair_share = FairShare(reports=True)

    def expect_answer(self, context: RequestContext) -> None: ...


class Scene:
    def __init__(self, limits: Limits, *tenants: Tenant, has_keys: bool = False) -> None:
        self.policies = {tenant.name: TenantPolicy(tenant, None) for tenant in tenants}
        self.engine = OneEngine()
        self.exits: list[str] = []
        self.started: list[str] = []
        self.clock = ManualClock()
        loop = asyncio.get_running_loop()
        self.queue = LateBindingQueue(
            WorkerRuntime(self.clock, limits, loop),
            cast(RoleRouters, self.engine),
            lambda key, cause: self.exits.append(cause),
            {KEY: cast(ModelAdmission, AnyMemory())} if has_keys else {},
        )
        self.engine.on_dispatch(None, "e", 0.0)

    async def add(self, caller: str, number: int) -> "asyncio.Task[None]":
        context = SimpleNamespace(
            address=SimpleNamespace(id="e"),
            request=SimpleNamespace(model_key=KEY),
            route_request=SimpleNamespace(id=f"{caller}/{number}", sequences=1),
            caller=caller,
            admission_request=None,
            counted_at="",
            result=SimpleNamespace(queued_seconds=0.0),
            policy=self.policies.get(caller, NO_TENANT),
        )
        task = asyncio.get_running_loop().create_task(self._wait(cast(RequestContext, context)))
        await asyncio.sleep(0)
        return task

    async def _wait(self, context: RequestContext) -> None:
        if await self.queue.wait(context):
            self.started.append(context.route_request.id)

    def deferred(self, caller: str) -> dict[str, float]:
        context = SimpleNamespace(
            request=SimpleNamespace(model_key=KEY), caller=caller, policy=self.policies.get(caller, NO_TENANT)
        )
        return dict(self.queue.deferred_seconds(cast(RequestContext, context)))

    def can_start(self) -> bool:
        """Whether a new request would not wait."""
        context = SimpleNamespace(
            address=SimpleNamespace(id="e"),
            request=SimpleNamespace(model_key=KEY),
            transfer=None,
            caller="new",
        )
        return self.queue.can_start(cast(RequestContext, context))

    async def finish_one(self) -> None:
        """Ends the request that the engine computes, and starts the next."""
        self.engine.on_abandoned("", 0.0)
        self.clock.advance(10.0)
        self.queue.schedule_dispatch(KEY)
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.mark.parametrize("callers", [("only",), ("flood", "steady")])
async def test_assigned_requests_go_by_credit_between_callers_and_by_order_within_one(callers: tuple[str, ...]) -> None:
    scene = Scene(Limits())
    tasks = [await scene.add(callers[0], number) for number in range(6)]
    tasks += [await scene.add(callers[-1], number) for number in (10, 11)]
    for _ in tasks:
        await scene.finish_one()
    order = [name.partition("/")[2] for name in scene.started]
    expected = ["0", "10", "1", "11", "2", "3", "4", "5"] if len(callers) > 1 else [*"012345", "10", "11"]
    assert order == expected
    await asyncio.gather(*tasks)
    assert scene.queue._waiting == {}
    scene.queue.on_fleet_update()
    assert scene.queue._callers == {}


async def test_work_of_callers_without_credit_waits_behind_a_request_that_is_placed() -> None:
    scene = Scene(Limits())
    assert scene.deferred("steady") == {}
    tasks = [await scene.add("flood", number) for number in range(4)]
    assert scene.deferred("flood") == {}, "all of it goes before its own next request"
    assert scene.deferred("steady") == {}, "nothing was served yet, so both have credit"
    await scene.finish_one()
    assert scene.deferred("steady") == {"e": 3.0}
    tasks.append(await scene.add("steady", 10))
    assert scene.deferred("steady") == {"e": 3.0}, "its own goes before its next"
    assert scene.deferred("flood") == {}, "the other one goes first"
    for _ in tasks:
        await scene.finish_one()
    await asyncio.gather(*tasks)
    assert scene.deferred("steady") == {}


async def test_with_very_many_callers_all_work_counts_as_before_a_request() -> None:
    scene = Scene(Limits())
    tasks = [await scene.add(f"caller-{number}", number) for number in range(33)]
    assert scene.deferred("steady") == {}
    for _ in tasks:
        await scene.finish_one()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(
    ("heavy", "light", "shares"),
    [
        (Tenant("heavy", weight=4), Tenant("light"), (4, 1)),
        (Tenant("heavy", tier=Tier.INTERACTIVE), Tenant("light"), (10, 1)),
        (Tenant("heavy", weight=2), Tenant("light", tier=Tier.BATCH, weight=5), (4, 1)),
    ],
)
async def test_assigned_requests_share_by_weight_and_tier(
    heavy: Tenant, light: Tenant, shares: tuple[int, int]
) -> None:
    scene = Scene(replace(Limits(), queue_seconds=1e6), heavy, light)
    tasks = [await scene.add(name, number) for number in range(60) for name in ("light", "heavy")]
    for _ in range(44):
        await scene.finish_one()
    served = Counter(name.partition("/")[0] for name in scene.started)
    assert served["heavy"] / served["light"] == pytest.approx(shares[0] / shares[1], rel=0.25)
    for _ in tasks:
        await scene.finish_one()
    await asyncio.gather(*tasks)


async def test_batch_is_shed_early_where_more_work_waits_than_it_waits_for() -> None:
    scene = Scene(replace(Limits(), queue_seconds=3.0), Tenant("batch", tier=Tier.BATCH))
    tasks = [await scene.add("batch", number) for number in range(3)]
    refused = await scene.add("batch", 3)
    with pytest.raises(RequestShed, match="4 s of work"):
        await refused
    tasks.append(await scene.add("steady", 4))
    assert scene.exits == ["shed"]
    for _ in tasks:
        await scene.finish_one()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("has_keys", [False, True])
async def test_only_requests_of_callers_have_a_longest_wait(has_keys: bool) -> None:
    scene = Scene(replace(Limits(), queue_seconds=30.0), Tenant("batch", tier=Tier.BATCH), has_keys=has_keys)
    tasks = {name: await scene.add(name, 0) for name in ("batch", "steady")}
    scene.clock.advance(29.0)
    tasks["late"] = await scene.add("steady", 1)
    await asyncio.sleep(2 * POLL_SECONDS)
    assert not any(task.done() for task in tasks.values())
    scene.clock.advance(1.0)
    await asyncio.sleep(2 * POLL_SECONDS)
    assert [name for name, task in tasks.items() if task.done()] == (["batch", "steady"] if has_keys else [])
    if has_keys:
        assert [type(tasks[name].exception()) for name in ("batch", "steady")] == [RequestShed, Overloaded]
        assert scene.exits == ["shed-late", "held-too-long"]
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def test_full_queue_of_assigned_requests_refuses_batch_first() -> None:
    scene = Scene(replace(Limits(), queued_requests=4), Tenant("batch", tier=Tier.BATCH), Tenant("steady"))
    batch = [await scene.add("batch", 0)]
    tasks = [await scene.add("steady", number) for number in range(4)]
    with pytest.raises(Overloaded):
        await batch[0]
    batch = [await scene.add("batch", 1)]
    with pytest.raises(Overloaded):
        await batch[0]
    for _ in tasks:
        await scene.finish_one()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(("backlog_seconds", "starts"), [(0.001, True), (0.004, True), (0.006, False), (1.0, False)])
async def test_engine_that_answers_at_once_is_not_waited_for(backlog_seconds: float, starts: bool) -> None:
    """By its profile, a step takes a tenth of the prompts that it has got."""
    scene = Scene(Limits())
    scene.engine.instance.full_step_seconds = backlog_seconds / 10
    scene.engine.instance.load.backlog_seconds = backlog_seconds
    assert scene.can_start() is starts


async def test_assigned_requests_beyond_the_bound_are_those_of_the_caller_that_has_most() -> None:
    scene = Scene(replace(Limits(), queued_requests=4))
    flood = [await scene.add("flood", number) for number in range(4)]
    steady = [await scene.add("steady", 10)]
    with pytest.raises(Overloaded, match="4 of them of this caller") as refused:
        await flood[3]
    assert refused.value.headers == (("retry-after", "7"),)
    with pytest.raises(Overloaded, match="3 of them of this caller"):
        await (await scene.add("flood", 5))
    assert scene.exits == ["line-full"]
    for _ in range(4):
        await scene.finish_one()
    await asyncio.gather(*flood[:3], *steady)
    assert scene.exits == ["line-full"] + ["dispatch-queue"] * 4


async def test_assigned_requests_of_the_only_caller_are_not_bounded() -> None:
    scene = Scene(replace(Limits(), queued_requests=2))
    tasks = [await scene.add("only", number) for number in range(5)]
    for _ in tasks:
        await scene.finish_one()
    assert [name.partition("/")[2] for name in scene.started] == [*"01234"]
    await asyncio.gather(*tasks)


async def test_dispatch_costs_the_same_however_many_requests_of_a_caller_wait() -> None:
    scene = Scene(Limits())
    tasks = [await scene.add("only", number) for number in reversed(range(300))]
    for _ in range(100):
        await scene.finish_one()
    assert [name.partition("/")[2] for name in scene.started][:100] == [f"{number}" for number in range(100)]
    assert scene.engine.sort_count == 300
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_waiting_requests_whose_clients_leave_keep_order_and_take_no_memory() -> None:
    scene = Scene(Limits())
    stays = [await scene.add("steady", number) for number in (500, 400)]
    leaves = [await scene.add("steady", number) for number in range(300)]
    for task in leaves:
        task.cancel()
    await asyncio.gather(*leaves, return_exceptions=True)
    (heap,) = scene.queue._waiting[KEY]["e"]._heaps.values()
    assert len(heap.entries) <= 2 * 2 + 33
    for _ in stays:
        await scene.finish_one()
    assert scene.started == ["steady/400", "steady/500"]
    await asyncio.gather(*stays)
    assert not scene.queue._waiting
    scene.queue.on_fleet_update()
    assert not scene.queue._callers

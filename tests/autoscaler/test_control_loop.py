"""The loop acts on plans alone: missing parts, failures, leadership and wake hints."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from fairlead_autoscaler.collector.observation import GatewayMetrics, GatewaySnapshot
from fairlead_autoscaler.control_loop import AUTOSCALER_HINTED_TICKS_PER_MINUTE
from fairlead_autoscaler.core import MixRequest, MixResult, PoolSpec, ScalingCore
from fairlead_testing.waiting import wait_until

KEY = "default/tiny"


def test_what_is_planned_is_written_once_and_what_fits_is_not(made: Any) -> None:
    loop = made.loop()
    made.wants["main"] = 4
    made.tick(loop)
    assert made.asked == [(KEY, "main", 4, ())]
    made.models[KEY] = made.state(4)
    made.tick(loop)
    assert len(made.asked) == 1
    assert loop.counters.writes == {(KEY, "main", "up"): 1}


def test_what_is_written_is_audited_with_its_reason_and_what_is_refused_is_not(made: Any) -> None:
    loop = made.loop()
    made.wants["main"], made.refuses = 4, "the API server is away"
    made.tick(loop)
    assert made.audited == []
    made.refuses = None
    made.tick(loop)
    event = made.audited[0]
    assert (event.action, event.object, event.actor) == ("Scaled", f"ModelDeployment/{KEY}", "fairlead-autoscaler")
    assert event.before == {"pool": "main", "replicas": 2, "asleep": 0}
    assert event.after == {"pool": "main", "replicas": 4, "asleep": 0}
    assert event.reason.partition(": ")[0] in {rule for _, _, rule in loop.counters.decisions}


def test_of_pools_that_trade_engines_the_one_that_shrinks_is_written_first(made: Any) -> None:
    one = made.models[KEY]
    pools = tuple(PoolSpec(name, maximum=9) for name in ("decode", "prefill"))
    there = {"decode": replace(one.pools["main"], desired=2), "prefill": replace(one.pools["main"], desired=4)}
    made.models[KEY] = replace(one, model=replace(one.model, pools=pools), pools=there)
    made.wants.update(decode=5, prefill=1)
    made.tick(made.loop())
    assert [(pool, number) for _, pool, number, _ in made.asked] == [("prefill", 1), ("decode", 5)]


def test_going_down_names_who_leaves_first(made: Any) -> None:
    gauges = {("unique_used_blocks", KEY, "main-0/1/0"): 3.0, ("unique_used_blocks", KEY, "main-1/1/0"): 90.0}
    made.readings = GatewaySnapshot((GatewayMetrics("gateway", {}, {}, gauges),))
    made.wants["main"] = 1
    made.tick(made.loop())
    assert made.asked == [(KEY, "main", 1, ("main-0", "main-1"))]


def test_while_the_world_is_away_nobody_is_asked_and_nothing_is_written(made: Any) -> None:
    loop = made.loop()
    made.wants["main"] = 4
    made.unavailable = "the API server does not answer"
    made.tick(loop)
    assert (made.cores, made.asked, made.records) == ([], [], [])
    assert loop.notes() == ["the models are unavailable: the API server does not answer"]
    made.unavailable = None
    made.tick(loop)
    assert loop.notes() == []
    assert [one[2] for one in made.asked] == [4]


def test_without_gateways_the_core_is_told_that_nothing_is_known(made: Any) -> None:
    made.readings = GatewaySnapshot(
        (GatewayMetrics("gateway", error="silent"),), ("gateway gateway is missing: silent",)
    )
    loop = made.loop()
    made.tick(loop)
    (seen,) = made.cores[0].observations
    assert seen.gateway is None
    assert seen.pools["main"].replicas is None
    assert seen.pools["main"].ready == 2
    assert loop.notes() == ["gateway gateway is missing: silent"]


def test_a_core_that_fails_costs_its_own_model_that_tick(made: Any) -> None:
    other = "default/other"
    made.models[other] = replace(made.models[KEY], model=replace(made.models[KEY].model, name=other))
    loop = made.loop()
    made.tick(loop)
    made.wants["main"] = 5
    made.cores[0].fails = True
    made.tick(loop)
    assert made.asked == [(other, "main", 5, ())]
    assert loop.notes() == [f"{KEY}: its core failed (ZeroDivisionError); no pool changes"]
    made.tick(loop)
    assert loop.notes() == []
    assert (KEY, "main", 5, ()) in made.asked


def test_a_write_that_is_refused_is_said_and_tried_again(made: Any) -> None:
    loop = made.loop()
    made.wants["main"] = 4
    made.refuses = "conflict"
    made.tick(loop)
    assert loop.notes() == [f"{KEY}/main: 4 could not be written: conflict"]
    assert loop.counters.refused == {(KEY, "main"): 1}
    made.refuses = None
    made.tick(loop)
    assert made.asked == [(KEY, "main", 4, ())]
    assert loop.notes() == []


def test_one_that_does_not_lead_stays_warm_and_writes_nothing(made: Any) -> None:
    made.leading = False
    loop = made.loop()
    made.wants["main"] = 4
    made.tick(loop)
    assert made.asked == []
    assert made.records[-1].rulings["main"].unwritten == "another replica of the autoscaler leads"
    made.leading = True
    made.tick(loop)
    assert made.asked == [(KEY, "main", 4, ())]
    assert len(made.cores) == 1


def test_advice_is_given_and_not_followed_and_a_model_that_is_off_is_not_looked_at(made: Any) -> None:
    made.models[KEY] = made.state(mode="Advise")
    made.wants["main"] = 4
    loop = made.loop()
    made.tick(loop)
    assert made.asked == []
    assert (made.records[-1].mode, made.records[-1].rulings["main"].replicas) == ("Advise", 4)
    made.models[KEY] = made.state(mode="Disabled")
    made.tick(loop)
    assert loop.last_records() == {}


def test_a_hint_wakes_a_model_whatever_is_known_and_an_unknown_one_is_refused(made: Any) -> None:
    made.models[KEY] = made.state(0)
    made.wants["main"] = 0
    loop = made.loop()
    made.tick(loop)
    assert made.asked == []
    assert not loop.wake("default/nobody")
    assert loop.wake(KEY)
    made.tick(loop)
    assert made.asked == [(KEY, "main", 1, ())]
    assert made.records[-1].rulings["main"].rule == "wake"


def test_a_hint_is_forgotten_after_half_a_minute(made: Any) -> None:
    made.models[KEY] = made.state(0)
    made.wants["main"] = 0
    loop = made.loop()
    made.tick(loop)
    loop.wake(KEY)
    made.clock.advance(30.0)
    made.tick(loop)
    assert made.asked == []


async def test_a_hint_makes_the_next_tick_come_at_once(made: Any) -> None:
    async def hinted() -> None:
        loop = made.loop()
        async with asyncio.timeout(120):
            running = asyncio.create_task(loop.run())
            await wait_until(lambda: loop.counters.ticks >= 1)
            loop.wake(KEY)  # the clock stands still: without a hint the next tick would be 5 s away
            await wait_until(lambda: loop.counters.ticks >= 2)
            running.cancel()
        assert loop.counters.wakes == 1

    before = made.clock.now()
    await hinted()
    assert made.clock.now() == before


async def test_a_flood_of_hints_hastens_no_more_looks_than_come_anyway(made: Any) -> None:
    async def flooded() -> list[int]:
        loop, found = made.loop(min_tick_seconds=0.0), []
        running = asyncio.create_task(loop.run())
        for minute in range(2):
            made.clock.advance(60.0 * minute)
            for _ in range(10 * AUTOSCALER_HINTED_TICKS_PER_MINUTE):
                assert loop.wake(KEY) or not found
                for _ in range(20):  # a tick takes fewer turns of the event loop
                    await asyncio.sleep(0)
            found.append(loop.counters.ticks)
        running.cancel()
        return found

    most = AUTOSCALER_HINTED_TICKS_PER_MINUTE
    assert await flooded() == [1 + most, 1 + 2 * most]  # the first came by itself
    assert len(made.records) == 1 + 2 * most
    assert made.records[-1].rulings["main"].replicas == 2


def test_what_was_learned_stays_when_the_facts_of_a_model_change(made: Any) -> None:
    loop = made.loop()
    made.tick(loop)
    made.models[KEY] = made.state(2, most=20, stabilization_window="2m")
    made.tick(loop)
    (core,) = made.cores
    assert core.model.pools[0].maximum == 20
    window = core.settings
    assert (window.window_seconds, window.min_window_seconds) == (120.0, 120.0)


def test_a_model_that_is_gone_is_forgotten(made: Any) -> None:
    loop = made.loop()
    made.tick(loop)
    del made.models[KEY]
    made.tick(loop)
    assert loop.last_records() == {}
    assert not loop.wake(KEY)


def test_looks_carry_the_state_before_them_now_and_then(made: Any) -> None:
    loop = made.loop()
    for _ in range(61):
        made.tick(loop)
    assert [number for number, look in enumerate(made.records) if look.before is not None] == [0, 60]


def test_a_restart_wakes_no_model_that_sleeps_and_the_first_request_does(made: Any) -> None:
    made.core = ScalingCore
    made.models[KEY] = made.state(0)
    loop = made.loop()
    for _ in range(40):
        made.tick(loop)
    assert made.asked == []
    made.readings = GatewaySnapshot(
        (GatewayMetrics("gateway", {("arrivals", KEY): 1.0, ("prompt_tokens", KEY): 9.0}, {}, {("held", KEY): 1.0}),)
    )
    made.tick(loop)
    assert made.asked[0][2] >= 1


class FakeMixSolver:
    """Answers at the next tick, and notes who is there."""

    def __init__(self) -> None:
        self.open: dict[str, dict[str, MixRequest]] = {}
        self.models: set[str] = set()

    def submit(self, model: str, asks: Mapping[str, MixRequest]) -> None:
        self.open.setdefault(model, {}).update(asks)

    def take_results(self, model: str) -> dict[str, MixResult]:
        return {role: MixResult(asked.at, {"main": 3}, "milp") for role, asked in self.open.pop(model, {}).items()}

    def retain(self, models: Collection[str]) -> None:
        self.models = set(models)


def test_what_a_core_asks_is_answered_by_a_later_observation_which_is_kept(made: Any) -> None:
    desk = FakeMixSolver()
    loop = made.loop(mix_solver=desk)
    made.tick(loop)
    made.cores[0].asks = {"Serve": MixRequest(1_005.0, (1.0,), ())}
    made.tick(loop)
    made.cores[0].asks = {}
    assert [look.observation.mixes for look in made.records] == [{}, {}]
    assert made.records[-1].plan.asks == {"Serve": MixRequest(1_005.0, (1.0,), ())}
    made.tick(loop)
    made.tick(loop)
    told = {"Serve": MixResult(1_005.0, {"main": 3}, "milp")}
    assert [look.observation.mixes for look in made.records[2:]] == [told, {}]
    assert made.cores[0].observations[2].mixes == told
    assert desk.models == {KEY}


def test_the_real_core_holds_while_nothing_is_known(made: Any) -> None:
    made.core = ScalingCore
    made.readings = GatewaySnapshot((GatewayMetrics("gateway", error="silent"),))
    loop = made.loop()
    for _ in range(10):
        made.tick(loop)
    assert made.asked == []
    assert made.records[-1].rulings["main"].replicas == 2


def test_deleted_models_leave_no_counts_and_no_problems(made: Any) -> None:
    loop = made.loop()
    for number in range(5):
        made.models = {f"default/m{number}": replace(made.models.popitem()[1])}
        key = f"default/m{number}"
        made.models[key] = replace(made.models[key], model=replace(made.models[key].model, name=key))
        made.wants["main"] = 4
        made.tick(loop)
        loop.problems[key, "main"] = "on purpose"
        loop.counters.refused[key, "main"] += 1
    made.models = {}
    made.tick(loop)
    assert (loop.counters.writes, loop.counters.refused, loop.counters.decisions) == ({}, {}, {})
    assert loop.problems == {}


def test_slow_writes_of_one_namespace_delay_no_tick_and_no_other_model(made: Any) -> None:
    calm = "calm/m"
    slow = [f"flood/m{number}" for number in range(40)]
    made.models = {key: replace(made.state(2), model=replace(made.state(2).model, name=key)) for key in (*slow, calm)}
    made.wants["main"] = 4
    begun: list[str] = []
    written: list[str] = []

    async def scale(key: str, *rest: Any) -> None:
        begun.append(key)
        if key != calm:
            await asyncio.Event().wait()
        written.append(key)

    made.scale = scale

    async def ticks() -> None:
        loop = made.loop(cluster_seconds=3_600.0)
        for number in range(2):
            made.clock.advance(5.0)
            await loop.tick()
            assert loop.counters.ticks == number + 1
        for task in loop._writing.values():
            task.cancel()
        await asyncio.gather(*loop._writing.values(), return_exceptions=True)

    asyncio.run(ticks())
    assert written == [calm, calm]
    assert sum(key != calm for key in begun) == 16, "each is a connection, and waits for its end"


async def test_write_that_waits_for_its_turn_takes_the_newest_number(made: Any) -> None:
    keys = [f"flood/m{number:02}" for number in range(17)]
    made.models = {key: replace(made.state(2), model=replace(made.state(2).model, name=key)) for key in keys}
    answered = asyncio.Event()
    written: dict[str, int] = {}

    async def scale(key: str, pool: str, replicas: int, *rest: Any) -> None:
        await answered.wait()
        written[key] = replicas

    made.scale = scale
    loop = made.loop(cluster_seconds=3_600.0)
    made.wants["main"] = 1
    await loop.tick()
    made.clock.advance(5.0)
    made.wants["main"] = 9
    await loop.tick()
    answered.set()
    await asyncio.gather(*loop._writing.values())
    assert written == dict.fromkeys(keys[:16], 1) | {keys[16]: 9}


def test_model_whose_values_no_rule_can_take_stops_no_other_model(made: Any) -> None:
    broken = replace(made.state(2), policy=replace_policy(made.state(2).policy))
    made.models["flood/m"] = replace(broken, model=replace(broken.model, name="flood/m"))
    made.wants["main"] = 4
    loop = made.loop()
    made.tick(loop)
    assert [(key, number) for key, _, number, _ in made.asked] == [(KEY, 4)]
    assert loop.notes() == ["flood/m: it cannot be decided (ValueError); no pool changes"]


def replace_policy(policy: Any) -> Any:
    """Returns a policy whose bounds raise an error."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(policy, name)

        def bounds_at(self, *given: Any) -> Any:
            raise ValueError("no such hour")

    return Broken()

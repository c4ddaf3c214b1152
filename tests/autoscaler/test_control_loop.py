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


def test_what_is_planned_is_written_once_and_what_fits_is_not(harness: Any) -> None:
    loop = harness.loop()
    harness.wants["main"] = 4
    harness.tick(loop)
    assert harness.asked == [(KEY, "main", 4, ())]
    harness.models[KEY] = harness.state(4)
    harness.tick(loop)
    assert len(harness.asked) == 1
    assert loop.counters.writes == {(KEY, "main", "up"): 1}


def test_what_is_written_is_audited_with_its_reason_and_what_is_refused_is_not(harness: Any) -> None:
    loop = harness.loop()
    harness.wants["main"], harness.refuses = 4, "the API server is away"
    harness.tick(loop)
    assert harness.audited == []
    harness.refuses = None
    harness.tick(loop)
    event = harness.audited[0]
    assert (event.action, event.object, event.actor) == ("Scaled", f"ModelDeployment/{KEY}", "fairlead-autoscaler")
    assert event.before == {"pool": "main", "replicas": 2, "asleep": 0}
    assert event.after == {"pool": "main", "replicas": 4, "asleep": 0}
    assert event.reason.partition(": ")[0] in {rule for _, _, rule in loop.counters.decisions}


def test_of_pools_that_trade_engines_the_one_that_shrinks_is_written_first(harness: Any) -> None:
    state = harness.models[KEY]
    pools = tuple(PoolSpec(name, maximum=9) for name in ("decode", "prefill"))
    there = {"decode": replace(state.pools["main"], desired=2), "prefill": replace(state.pools["main"], desired=4)}
    harness.models[KEY] = replace(state, model=replace(state.model, pools=pools), pools=there)
    harness.wants.update(decode=5, prefill=1)
    harness.tick(harness.loop())
    assert [(pool, number) for _, pool, number, _ in harness.asked] == [("prefill", 1), ("decode", 5)]


def test_going_down_names_who_leaves_first(harness: Any) -> None:
    gauges = {("unique_used_blocks", KEY, "main-0/1/0"): 3.0, ("unique_used_blocks", KEY, "main-1/1/0"): 90.0}
    harness.readings = GatewaySnapshot((GatewayMetrics("gateway", {}, {}, gauges),))
    harness.wants["main"] = 1
    harness.tick(harness.loop())
    assert harness.asked == [(KEY, "main", 1, ("main-0", "main-1"))]


def test_while_the_world_is_away_nobody_is_asked_and_nothing_is_written(harness: Any) -> None:
    loop = harness.loop()
    harness.wants["main"] = 4
    harness.unavailable = "the API server does not answer"
    harness.tick(loop)
    assert (harness.cores, harness.asked, harness.records) == ([], [], [])
    assert loop.notes() == ["the models are unavailable: the API server does not answer"]
    harness.unavailable = None
    harness.tick(loop)
    assert loop.notes() == []
    assert [call[2] for call in harness.asked] == [4]


def test_without_gateways_the_core_is_told_that_nothing_is_known(harness: Any) -> None:
    harness.readings = GatewaySnapshot(
        (GatewayMetrics("gateway", error="silent"),), ("gateway gateway is missing: silent",)
    )
    loop = harness.loop()
    harness.tick(loop)
    (seen,) = harness.cores[0].observations
    assert seen.gateway is None
    assert seen.pools["main"].replicas is None
    assert seen.pools["main"].ready == 2
    assert loop.notes() == ["gateway gateway is missing: silent"]


def test_a_core_that_fails_costs_its_own_model_that_tick(harness: Any) -> None:
    other = "default/other"
    harness.models[other] = replace(harness.models[KEY], model=replace(harness.models[KEY].model, name=other))
    loop = harness.loop()
    harness.tick(loop)
    harness.wants["main"] = 5
    harness.cores[0].fails = True
    harness.tick(loop)
    assert harness.asked == [(other, "main", 5, ())]
    assert loop.notes() == [f"{KEY}: its core failed (ZeroDivisionError); no pool changes"]
    harness.tick(loop)
    assert loop.notes() == []
    assert (KEY, "main", 5, ()) in harness.asked


def test_a_write_that_is_refused_is_said_and_tried_again(harness: Any) -> None:
    loop = harness.loop()
    harness.wants["main"] = 4
    harness.refuses = "conflict"
    harness.tick(loop)
    assert loop.notes() == [f"{KEY}/main: 4 could not be written: conflict"]
    assert loop.counters.refused == {(KEY, "main"): 1}
    harness.refuses = None
    harness.tick(loop)
    assert harness.asked == [(KEY, "main", 4, ())]
    assert loop.notes() == []


def test_one_that_does_not_lead_stays_warm_and_writes_nothing(harness: Any) -> None:
    harness.leading = False
    loop = harness.loop()
    harness.wants["main"] = 4
    harness.tick(loop)
    assert harness.asked == []
    assert harness.records[-1].rulings["main"].unwritten == "another replica of the autoscaler leads"
    harness.leading = True
    harness.tick(loop)
    assert harness.asked == [(KEY, "main", 4, ())]
    assert len(harness.cores) == 1


def test_advice_is_given_and_not_followed_and_a_model_that_is_off_is_not_looked_at(harness: Any) -> None:
    harness.models[KEY] = harness.state(mode="Advise")
    harness.wants["main"] = 4
    loop = harness.loop()
    harness.tick(loop)
    assert harness.asked == []
    assert (harness.records[-1].mode, harness.records[-1].rulings["main"].replicas) == ("Advise", 4)
    harness.models[KEY] = harness.state(mode="Disabled")
    harness.tick(loop)
    assert loop.last_records() == {}


def test_a_hint_wakes_a_model_whatever_is_known_and_an_unknown_one_is_refused(harness: Any) -> None:
    harness.models[KEY] = harness.state(0)
    harness.wants["main"] = 0
    loop = harness.loop()
    harness.tick(loop)
    assert harness.asked == []
    assert not loop.wake("default/nobody")
    assert loop.wake(KEY)
    harness.tick(loop)
    assert harness.asked == [(KEY, "main", 1, ())]
    assert harness.records[-1].rulings["main"].rule == "wake"


def test_a_hint_is_forgotten_after_half_a_minute(harness: Any) -> None:
    harness.models[KEY] = harness.state(0)
    harness.wants["main"] = 0
    loop = harness.loop()
    harness.tick(loop)
    loop.wake(KEY)
    harness.clock.advance(30.0)
    harness.tick(loop)
    assert harness.asked == []


async def test_a_hint_makes_the_next_tick_come_at_once(harness: Any) -> None:
    async def hinted() -> None:
        loop = harness.loop()
        async with asyncio.timeout(120):
            running = asyncio.create_task(loop.run())
            await wait_until(lambda: loop.counters.ticks >= 1)
            loop.wake(KEY)  # the clock stands still: without a hint the next tick would be 5 s away
            await wait_until(lambda: loop.counters.ticks >= 2)
            running.cancel()
        assert loop.counters.wakes == 1

    before = harness.clock.now()
    await hinted()
    assert harness.clock.now() == before


async def test_a_flood_of_hints_hastens_no_more_looks_than_come_anyway(harness: Any) -> None:
    async def flooded() -> list[int]:
        loop, tick_counts = harness.loop(min_tick_seconds=0.0), []
        running = asyncio.create_task(loop.run())
        for minute in range(2):
            harness.clock.advance(60.0 * minute)
            for _ in range(10 * AUTOSCALER_HINTED_TICKS_PER_MINUTE):
                assert loop.wake(KEY) or not tick_counts
                for _ in range(20):  # a tick takes fewer turns of the event loop
                    await asyncio.sleep(0)
            tick_counts.append(loop.counters.ticks)
        running.cancel()
        return tick_counts

    most = AUTOSCALER_HINTED_TICKS_PER_MINUTE
    assert await flooded() == [1 + most, 1 + 2 * most]  # the first came by itself
    assert len(harness.records) == 1 + 2 * most
    assert harness.records[-1].rulings["main"].replicas == 2


def test_what_was_learned_stays_when_the_facts_of_a_model_change(harness: Any) -> None:
    loop = harness.loop()
    harness.tick(loop)
    harness.models[KEY] = harness.state(2, most=20, stabilization_window="2m")
    harness.tick(loop)
    (core,) = harness.cores
    assert core.model.pools[0].maximum == 20
    window = core.settings
    assert (window.window_seconds, window.min_window_seconds) == (120.0, 120.0)


def test_a_model_that_is_gone_is_forgotten(harness: Any) -> None:
    loop = harness.loop()
    harness.tick(loop)
    del harness.models[KEY]
    harness.tick(loop)
    assert loop.last_records() == {}
    assert not loop.wake(KEY)


def test_looks_carry_the_state_before_them_now_and_then(harness: Any) -> None:
    loop = harness.loop()
    for _ in range(61):
        harness.tick(loop)
    assert [number for number, look in enumerate(harness.records) if look.before is not None] == [0, 60]


def test_a_restart_wakes_no_model_that_sleeps_and_the_first_request_does(harness: Any) -> None:
    harness.core = ScalingCore
    harness.models[KEY] = harness.state(0)
    loop = harness.loop()
    for _ in range(40):
        harness.tick(loop)
    assert harness.asked == []
    harness.readings = GatewaySnapshot(
        (GatewayMetrics("gateway", {("arrivals", KEY): 1.0, ("prompt_tokens", KEY): 9.0}, {}, {("held", KEY): 1.0}),)
    )
    harness.tick(loop)
    assert harness.asked[0][2] >= 1


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


def test_what_a_core_asks_is_answered_by_a_later_observation_which_is_kept(harness: Any) -> None:
    desk = FakeMixSolver()
    loop = harness.loop(mix_solver=desk)
    harness.tick(loop)
    harness.cores[0].asks = {"Serve": MixRequest(1_005.0, (1.0,), ())}
    harness.tick(loop)
    harness.cores[0].asks = {}
    assert [look.observation.mixes for look in harness.records] == [{}, {}]
    assert harness.records[-1].plan.asks == {"Serve": MixRequest(1_005.0, (1.0,), ())}
    harness.tick(loop)
    harness.tick(loop)
    mixes = {"Serve": MixResult(1_005.0, {"main": 3}, "milp")}
    assert [look.observation.mixes for look in harness.records[2:]] == [mixes, {}]
    assert harness.cores[0].observations[2].mixes == mixes
    assert desk.models == {KEY}


def test_the_real_core_holds_while_nothing_is_known(harness: Any) -> None:
    harness.core = ScalingCore
    harness.readings = GatewaySnapshot((GatewayMetrics("gateway", error="silent"),))
    loop = harness.loop()
    for _ in range(10):
        harness.tick(loop)
    assert harness.asked == []
    assert harness.records[-1].rulings["main"].replicas == 2


def test_deleted_models_leave_no_counts_and_no_problems(harness: Any) -> None:
    loop = harness.loop()
    for number in range(5):
        harness.models = {f"default/m{number}": replace(harness.models.popitem()[1])}
        key = f"default/m{number}"
        harness.models[key] = replace(harness.models[key], model=replace(harness.models[key].model, name=key))
        harness.wants["main"] = 4
        harness.tick(loop)
        loop.problems[key, "main"] = "on purpose"
        loop.counters.refused[key, "main"] += 1
    harness.models = {}
    harness.tick(loop)
    assert (loop.counters.writes, loop.counters.refused, loop.counters.decisions) == ({}, {}, {})
    assert loop.problems == {}


def test_slow_writes_of_one_namespace_delay_no_tick_and_no_other_model(harness: Any) -> None:
    calm = "calm/m"
    slow = [f"flood/m{number}" for number in range(40)]
    harness.models = {
        key: replace(harness.state(2), model=replace(harness.state(2).model, name=key)) for key in (*slow, calm)
    }
    harness.wants["main"] = 4
    begun: list[str] = []
    written: list[str] = []

    async def scale(key: str, *rest: Any) -> None:
        begun.append(key)
        if key != calm:
            await asyncio.Event().wait()
        written.append(key)

    harness.scale = scale

    async def ticks() -> None:
        loop = harness.loop(cluster_seconds=3_600.0)
        for number in range(2):
            harness.clock.advance(5.0)
            await loop.tick()
            assert loop.counters.ticks == number + 1
        for task in loop._writing.values():
            task.cancel()
        await asyncio.gather(*loop._writing.values(), return_exceptions=True)

    asyncio.run(ticks())
    assert written == [calm, calm]
    assert sum(key != calm for key in begun) == 16, "each is a connection, and waits for its end"


async def test_write_that_waits_for_its_turn_takes_the_newest_number(harness: Any) -> None:
    keys = [f"flood/m{number:02}" for number in range(17)]
    harness.models = {key: replace(harness.state(2), model=replace(harness.state(2).model, name=key)) for key in keys}
    answered = asyncio.Event()
    written: dict[str, int] = {}

    async def scale(key: str, pool: str, replicas: int, *rest: Any) -> None:
        await answered.wait()
        written[key] = replicas

    harness.scale = scale
    loop = harness.loop(cluster_seconds=3_600.0)
    harness.wants["main"] = 1
    await loop.tick()
    harness.clock.advance(5.0)
    harness.wants["main"] = 9
    await loop.tick()
    answered.set()
    await asyncio.gather(*loop._writing.values())
    assert written == dict.fromkeys(keys[:16], 1) | {keys[16]: 9}


def test_model_whose_values_no_rule_can_take_stops_no_other_model(harness: Any) -> None:
    broken = replace(harness.state(2), policy=replace_policy(harness.state(2).policy))
    harness.models["flood/m"] = replace(broken, model=replace(broken.model, name="flood/m"))
    harness.wants["main"] = 4
    loop = harness.loop()
    harness.tick(loop)
    assert [(key, number) for key, _, number, _ in harness.asked] == [(KEY, 4)]
    assert loop.notes() == ["flood/m: it cannot be decided (ValueError); no pool changes"]


def replace_policy(policy: Any) -> Any:
    """Returns a policy whose bounds raise an error."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(policy, name)

        def bounds_at(self, *given: Any) -> Any:
            raise ValueError("no such hour")

    return Broken()

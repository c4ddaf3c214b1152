"""The clairvoyant: what it pays for, that it keeps the target, and that it beats what does not know the future."""

from pathlib import Path
from random import Random

import pytest

from fairlead.fleet import Role
from fairlead_sim.scaling import pools
from fairlead_sim.scaling.book import Load
from fairlead_sim.scaling.known import Known
from fairlead_sim.scaling.load import CHAT, SHORT_OUTPUT, poisson
from fairlead_sim.scaling.loop import foreseen
from fairlead_sim.scaling.oracle import Found, replayed, search
from fairlead_sim.scaling.plant import Scenario
from fairlead_sim.scaling.pool import PoolSetup, StartUp

TEN_SECONDS = StartUp(10.0, 0.0)
HUMP = [1.0] * 6 + [3.0] * 8 + [1.0] * 6


def scenario(load: Load, setups: list[PoolSetup], seconds: float) -> Scenario:
    return Scenario("made", 1, seconds, pools.model(setups, 3.0, 0.15), tuple(setups), load)


def humped(startup: StartUp = TEN_SECONDS) -> Scenario:
    setups = [pools.pool(pools.small(), 1, startup=startup)]
    return scenario(poisson(HUMP, CHAT, Random(2)), setups, 1_200.0)


def test_a_clairvoyant_is_ready_when_it_wants_and_pays_from_the_order() -> None:
    made = scenario(Load([], [], []), [pools.pool(pools.small(), 1, startup=TEN_SECONDS)], 100.0)
    outcome = foreseen(made, [(50.0, {"S": 3}), (80.0, {"S": 1})])
    assert [look.ready for look in outcome.looks] == [(3,), (1,)]
    assert outcome.cost * 3600.0 == pytest.approx(100.0 + 2 * (10.0 + 30.0))


def test_starts_that_would_fail_are_paid_for_too() -> None:
    startup = StartUp(10.0, 0.0, failing=0.5)
    made = scenario(Load([], [], []), [pools.pool(pools.small(), 0, startup=startup, minimum=0)], 100.0)
    outcome = foreseen(made, [(0.0, {"S": 20})])
    spent = outcome.cost * 3600.0 - 20 * 100.0
    assert spent % 10.0 == pytest.approx(0.0, abs=1e-6)
    assert spent > 20 * 10.0 + 50.0


def test_it_keeps_the_target_below_what_any_constant_costs() -> None:
    made = humped()
    found = search(made, runs=60)
    assert found.attainment >= 0.99
    constants = [foreseen(made, [(0.0, {"S": count})]) for count in range(1, 8)]
    cheapest = min(one.cost for one in constants if one.attainment >= 0.99)
    assert found.cost < 0.85 * cheapest
    again = replayed(made, found.steps)
    assert (again.attainment, again.cost) == (found.attainment, found.cost)


def test_lowering_finds_what_a_share_of_busy_time_does_not() -> None:
    made = humped()
    assert search(made, runs=80).cost < search(made, runs=9).cost


def test_dear_starts_keep_replicas_over_a_gap() -> None:
    load = poisson([3.0, 3.0, 0.0, 3.0, 3.0], CHAT, Random(2))

    def fewest(startup: StartUp) -> int:
        setups = [pools.pool(pools.small(), 3, startup=startup, minimum=0)]
        found = search(scenario(load, setups, 300.0), runs=12)
        counts, at = {}, 0
        for begin, step in found.steps:
            counts[begin] = step["S"]
        within = [count for begin, count in counts.items() if begin <= 120.0]
        at = within[-1]
        return min([at, *[count for begin, count in counts.items() if 120.0 < begin < 180.0]])

    assert fewest(StartUp(300.0, 0.0)) > fewest(StartUp(1.0, 0.0))


def test_prefill_and_decode_are_searched_apart() -> None:
    load = poisson([4.0] * 6, SHORT_OUTPUT, Random(2))
    setups = [
        pools.pool(pools.large(), 1, role=Role.PREFILL, name="prefill"),
        pools.pool(pools.large(), 1, role=Role.DECODE, name="decode"),
    ]
    found = search(scenario(load, setups, 360.0), runs=30)
    assert found.attainment >= 0.99
    assert max(step.get("prefill", 0) for _, step in found.steps) > max(
        step.get("decode", 0) for _, step in found.steps
    )


def test_where_nothing_keeps_the_target_the_best_is_told() -> None:
    setups = [pools.pool(pools.small(), 1)]
    made = Scenario("made", 1, 60.0, pools.model(setups, 1e-3, 0.15), tuple(setups), poisson([1.0], CHAT, Random(1)))
    assert search(made, runs=10).attainment < 0.99


def test_better_is_cheaper_only_among_those_that_keep_the_target() -> None:
    keeps, dear, misses = Found((), 0.995, 10.0), Found((), 0.999, 11.0), Found((), 0.98, 5.0)
    assert keeps.better(dear)
    assert not dear.better(keeps)
    assert keeps.better(misses)
    assert not misses.better(keeps)


def test_schedules_are_kept_by_the_very_load(tmp_path: Path) -> None:
    file = tmp_path / "oracles.json"
    made, found = humped(), Found(((0.0, {"S": 2}), (60.0, {"S": 3})), 0.99, 1.5)
    assert Known(file).found(made) is None
    Known(file).keep(made, found)
    assert Known(file).found(made) == found
    load = made.load
    other = Scenario(
        "made", 1, 1_200.0, made.model, made.pools, Load(load.arrivals, load.prompts, [*load.outputs[:-1], 1])
    )
    assert Known(file).found(other) is None

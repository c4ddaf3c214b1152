"""Presets stay within the pool's maximum, are deterministic and never raise."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from fairlead_autoscaler.core.types import Observation
from fairlead_sim.autoscalers import PRESETS, build
from fairlead_testing.autoscaler.control_loop import (
    POOL,
    build_observation,
    pool_observation,
    ready_replica,
    single_pool_model,
)

MOST = 9
measured = st.none() | st.floats(0.0, 200.0)
pools = st.one_of(
    st.builds(
        pool_observation,
        st.lists(
            st.builds(ready_replica, st.integers(0, 20), measured, measured, st.none() | st.floats(0.0, 1.0)),
            max_size=MOST,
        ),
        desired=st.none() | st.integers(0, MOST + 3),
        pending=st.integers(0, 4),
    ),
    st.builds(pool_observation, st.none(), ready=st.integers(0, MOST), pending=st.integers(0, 4)),
)
series = st.lists(
    st.tuples(st.sampled_from([0.0, 5.0, 5.0, 7.0, 61.0, 400.0]), pools, measured, st.floats(0.0, 50.0)), max_size=25
)


def observations(drawn: Any) -> list[Observation]:
    now, seen = 1_000.0, []
    for wait, pool, arrivals, held in drawn:
        now += wait
        seen.append(build_observation(now, pool, arrivals=arrivals, held=held))
    return seen


@pytest.mark.property
@pytest.mark.parametrize("name", sorted(PRESETS))
@given(series, st.integers(0, 2))
def test_a_preset_stays_in_bounds_and_depends_on_nothing_else(name: str, drawn: Any, least: int) -> None:
    shown = observations(drawn)
    model = single_pool_model(minimum=least, maximum=MOST)
    scaler = build(name, model)
    plans = [scaler.step(one) for one in shown]
    for plan in plans:
        if POOL in plan.pools:
            chosen = plan.pools[POOL]
            assert 0 <= chosen.replicas <= MOST
            assert chosen.rule.split("/")[0] in (name.split("-")[0], "hpa")  # KEDA leaves all above zero to an HPA
            assert chosen.reason
    again = build(name, model)
    assert [again.step(one) for one in shown] == plans


STRETCHES = st.lists(
    st.tuples(
        st.integers(1, 12), st.integers(1, MOST), st.integers(0, 20), st.integers(0, 9), st.integers(0, 500), measured
    ),
    min_size=1,
    max_size=5,
)
"""Ticks and replicas. Of each replica: KV memory in twentieths, waiting requests, requests that
finish in a tick. Last: arrivals."""


def steady_observations(drawn: list[tuple[int, int, int, int, int, float | None]]) -> list[Observation]:
    """Returns half a minute each, with replicas that report everything."""
    now, seen = 1_000.0, []
    for ticks, count, kv, waiting, finished, arrivals in drawn:
        ready = [ready_replica(number, 1.0, float(waiting), kv / 20.0) for number in range(count)]
        busy = [
            replace(
                replica,
                generated_tokens=finished * 110.0,
                itl_seconds=finished * 3.0,
                finished=float(finished),
                first_tokens=float(finished),
                ttft_seconds=finished * 0.4,
            )
            for replica in ready
        ]
        for _ in range(ticks):
            now += 30.0
            seen.append(build_observation(now, pool_observation(busy), arrivals=arrivals))
    return seen


@pytest.mark.property
@pytest.mark.parametrize("name", ["dynamo", "wva-saturation"])
@given(STRETCHES, st.integers(0, 2))
def test_a_preset_that_plans_from_steady_metrics_stays_in_bounds(
    name: str, drawn: list[tuple[int, int, int, int, int, float | None]], least: int
) -> None:
    """Such presets plan nothing from the series above, in which each tick has other replicas."""
    shown = steady_observations(drawn)
    model = single_pool_model(minimum=least, maximum=MOST)
    scaler, again = build(name, model), build(name, model)
    plans = [scaler.step(one) for one in shown]
    for plan in plans:
        if POOL in plan.pools:
            event(plan.pools[POOL].rule)
            assert least <= plan.pools[POOL].replicas <= MOST
            assert plan.pools[POOL].reason
    assert [again.step(one) for one in shown] == plans

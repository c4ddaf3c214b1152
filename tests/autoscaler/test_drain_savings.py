"""Savings by moves of streams when replicas are removed, as the autoscaler says them."""

from dataclasses import replace
from typing import Any

import pytest

from fairlead_autoscaler.collector.observation import GatewayMetrics, GatewaySnapshot
from fairlead_autoscaler.core import ReplicaState
from fairlead_autoscaler.drain_savings import WINDOW_SECONDS, DrainSavings
from fairlead_cli.scaling.explain_command import render_look
from fairlead_testing.autoscaler.control_loop import KEY

pytestmark = pytest.mark.simulated


def test_a_removed_replica_counts_as_the_mean_rest_of_the_streams_that_moved() -> None:
    savings = DrainSavings()
    savings.on_removed("main", 2, 10.0)
    assert savings.on_moved(0, 0.0, 15.0) == {}
    assert savings.on_moved(4, 200.0, 20.0) == {"main": 100.0}
    assert savings.on_moved(3, 90.0, 25.0) == {}, "its replicas are counted already"
    savings.on_removed("main", 1, 30.0)
    savings.on_removed("other", 3, 30.0)
    assert savings.on_moved(2, 20.0, 35.0) == {"main": 10.0, "other": 30.0}
    assert savings.seconds == {"main": 110.0, "other": 30.0}


def test_moves_without_a_removal_or_long_after_it_save_nothing() -> None:
    savings = DrainSavings()
    assert savings.on_moved(4, 200.0, 5.0) == {}
    savings.on_removed("main", 1, 10.0)
    assert savings.on_moved(4, 200.0, 11.0 + WINDOW_SECONDS) == {}
    assert savings.seconds == {}


def moved(*gateways: tuple[float, float]) -> GatewaySnapshot:
    """Counts of gateways: streams that moved, and the rest of them in seconds."""
    return GatewaySnapshot(
        tuple(
            GatewayMetrics(f"g{at}", {("moved_streams", KEY): streams, ("moved_rest_seconds", KEY): rest}, {}, {})
            for at, (streams, rest) in enumerate(gateways)
        )
    )


def test_a_scale_down_says_what_its_moves_have_saved(harness: Any) -> None:
    harness.models[KEY] = harness.state(4)
    harness.wants["main"] = 2
    loop = harness.loop()
    harness.tick(loop)
    harness.models[KEY] = harness.state(2)
    harness.readings = moved((3, 100.0), (1, 60.0))
    harness.tick(loop)
    assert harness.records[-1].drain_saved_seconds == {"main": 2 * 40.0}
    assert any("ended 1m20s earlier in all" in line for line in render_look(harness.records[-1]))


def test_replicas_that_had_not_started_save_nothing(harness: Any) -> None:
    state = harness.state(4)
    main = state.pools["main"]
    starting = tuple(replace(one, state=ReplicaState.PENDING) for one in main.replicas[:2])
    harness.models[KEY] = replace(state, pools={"main": replace(main, replicas=(*starting, *main.replicas[2:]))})
    harness.wants["main"] = 2
    loop = harness.loop()
    harness.tick(loop)
    harness.readings = moved((3, 100.0))
    harness.tick(loop)
    assert harness.records[-1].drain_saved_seconds == {}
    assert not any("earlier in all" in line for line in render_look(harness.records[-1]))

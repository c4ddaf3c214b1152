"""Signals are inconsistent where requests begin that no gateway received, or run and do nothing."""

from dataclasses import replace

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolPlan,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ScalingCore,
)

MODEL = ModelSpec("chat", 3.0, 0.2, (PoolSpec("main", minimum=0, maximum=8, profile=builtin_profile("l4-qwen8b")),))
SILENT = GatewayTraffic(0.0, 0.0)


class ObservedCore:
    """A core that is shown one replica, or none, every five seconds."""

    def __init__(self) -> None:
        self.core, self.now = ScalingCore(MODEL), 0.0

    def step(
        self,
        gateway: GatewayTraffic | None,
        running: float = 0.0,
        begun: float = 0.0,
        done: float = 0.0,
        tokens: float = 0.0,
        ready: int = 1,
    ) -> PoolPlan:
        """Returns the plan after one tick."""
        self.now += 5.0
        replica = ReplicaMetrics(
            "a",
            ReplicaState.READY,
            self.now,
            1.0,
            running,
            0.0,
            0.0,
            generated_tokens=tokens,
            finished=done,
            first_tokens=begun,
        )
        seen = PoolObservation(ready, ready, replicas=(replica,) * ready)
        return self.core.step(Observation(self.now, gateway, {"main": seen})).pools["main"]


def test_requests_that_a_gateway_held_are_no_lie_when_an_engine_begins_them() -> None:
    watched = ObservedCore()
    for _ in range(3):
        watched.step(SILENT, ready=0)
    assert watched.step(GatewayTraffic(13.0, 7_000.0, 9.0), ready=0).rule == "wake"
    assert watched.step(SILENT, running=9.0, begun=9.0).rule != "metrics-inconsistent"
    watched.step(SILENT, done=9.0)
    assert watched.core.state.clock.blind_since is None


def test_what_was_queued_before_anybody_looked_is_no_lie_when_it_begins() -> None:
    watched = ObservedCore()
    watched.step(SILENT, running=9.0)
    for _ in range(3):
        assert watched.step(SILENT, running=6.0, begun=3.0).rule != "metrics-inconsistent"


def test_requests_that_no_gateway_received_make_signals_inconsistent_for_15_minutes() -> None:
    watched = ObservedCore()
    for _ in range(3):
        watched.step(GatewayTraffic(5.0, 5_000.0), running=5.0, begun=5.0)
    rules = [watched.step(SILENT, running=5.0, begun=5.0).rule for _ in range(4)]
    assert rules[-1] == "metrics-inconsistent"
    silent = [watched.step(SILENT) for _ in range(200)]
    assert watched.core.state.trust.began == 0.0
    assert watched.core.state.clock.blind_since is None
    assert silent[-1].rule not in {"metrics-inconsistent", "metrics-missing-up"}


def of_three_pools(core: ScalingCore, tick: int, *running: float) -> dict[str, PoolPlan]:
    """Returns the plans after a tick of three pools, each with a replica called 0.

    A tenth of the requests in flight ends in a tick, and as many arrive.
    """
    pools = {}
    for pool, runs in zip(("main", "other", "third"), running, strict=True):
        replica = ReplicaMetrics("0", ReplicaState.READY, 500.0, 1.0, runs, 0.0, 0.0, finished=runs / 10)
        pools[pool] = PoolObservation(1, 1, replicas=(replica,))
    return dict(core.step(Observation(tick * 5.0, GatewayTraffic(sum(running) / 10, 500.0), pools)).pools)


OTHER, THIRD = (replace(MODEL.pools[0], name=name) for name in ("other", "third"))
TWO = replace(MODEL, pools=(*MODEL.pools, OTHER))


def test_replicas_of_several_pools_may_have_one_name() -> None:
    core = ScalingCore(replace(TWO, pools=(*TWO.pools, THIRD)))
    for tick in range(60):
        plans = of_three_pools(core, tick, 2.0, 3.0, 40.0)
    assert core.state.trust.inconsistent_since is None
    assert "metrics-inconsistent" not in {plan.rule for plan in plans.values()}


def test_replicas_that_are_gone_are_forgotten_although_another_pool_is_unread() -> None:
    core = ScalingCore(TWO)
    for tick in range(60):
        seen = PoolObservation(
            1, 1, replicas=(ReplicaMetrics(f"r{tick}", ReplicaState.READY, 500.0, 1.0, 5.0, 0.0, 0.0, finished=1.0),)
        )
        core.step(Observation(tick * 5.0, GatewayTraffic(1.0, 500.0), {"main": seen, "other": PoolObservation(1, 1)}))
    assert core.state.trust.in_flight_of == {"main": {"r59": 5.0}, "other": {}}


def _busy(watched: ObservedCore, ticks: int = 3) -> None:
    for _ in range(ticks):
        watched.step(GatewayTraffic(5.0, 5_000.0), running=20.0, begun=5.0, done=5.0, tokens=800.0)


def test_engines_that_run_requests_and_generate_no_token_are_inconsistent() -> None:
    watched = ObservedCore()
    _busy(watched)
    assert watched.step(SILENT, running=20.0, tokens=800.0, ready=3).rule != "metrics-inconsistent"
    plans = [watched.step(SILENT, running=20.0, ready=3) for _ in range(20)]
    assert {plan.rule for plan in plans} <= {"metrics-inconsistent", "metrics-missing-up"}
    assert plans[0].reason.endswith("engines run 60 requests and generate no token: no change")
    assert min(plan.replicas for plan in plans) >= 3


def test_without_gateways_frozen_counters_are_inconsistent_too() -> None:
    watched = ObservedCore()
    _busy(watched)
    watched.step(None, running=20.0)
    assert watched.core.state.trust.inconsistent_since == watched.core.state.clock.now


@pytest.mark.parametrize(
    "moving",
    [{"tokens": 1.0}, {"begun": 1.0}, {"done": 1.0}],
)
def test_one_counter_that_moves_is_enough(moving: dict[str, float]) -> None:
    watched = ObservedCore()
    _busy(watched)
    watched.step(SILENT, running=20.0, **moving)
    assert watched.core.state.trust.inconsistent_since is None


def test_a_few_requests_or_arrivals_prove_nothing() -> None:
    watched = ObservedCore()
    _busy(watched)
    watched.step(GatewayTraffic(1.0, 1_000.0), running=20.0)
    assert watched.core.state.trust.inconsistent_since is None
    few = ObservedCore()
    for _ in range(3):
        few.step(GatewayTraffic(1.0, 1_000.0), running=3.0, begun=1.0, done=1.0, tokens=100.0)
    few.step(SILENT, running=3.0)
    assert few.core.state.trust.inconsistent_since is None


def test_counters_that_move_again_end_it() -> None:
    watched = ObservedCore()
    _busy(watched)
    for _ in range(5):
        watched.step(SILENT, running=20.0)
    assert watched.core.state.trust.inconsistent_since is not None
    watched.step(SILENT, running=18.0, done=2.0, tokens=700.0)
    assert watched.core.state.trust.inconsistent_since is None


def test_after_15_minutes_frozen_counters_are_believed() -> None:
    watched = ObservedCore()
    _busy(watched)
    rules = [watched.step(SILENT, running=20.0).rule for _ in range(200)]
    assert rules[170] in {"metrics-inconsistent", "metrics-missing-up"}
    assert not {"metrics-inconsistent", "metrics-missing-up", "metrics-missing"} & set(rules[185:])
    _busy(watched, 1)
    assert watched.core.state.trust.inconsistent_since is None

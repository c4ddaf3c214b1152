"""Gateways are inconsistent where engines begin requests that no gateway received or queued."""

from dataclasses import replace

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
        ready: int = 1,
    ) -> PoolPlan:
        """Returns the plan after one tick."""
        self.now += 5.0
        one = ReplicaMetrics(
            "a", ReplicaState.READY, self.now, 1.0, running, 0.0, 0.0, finished=done, first_tokens=begun
        )
        seen = PoolObservation(ready, ready, replicas=(one,) * ready)
        return self.core.step(Observation(self.now, gateway, {"main": seen})).pools["main"]


def test_requests_that_a_gateway_held_are_no_lie_when_an_engine_begins_them() -> None:
    watched = ObservedCore()
    for _ in range(3):
        watched.step(SILENT, ready=0)
    assert watched.step(GatewayTraffic(13.0, 7_000.0, 9.0), ready=0).rule == "wake"
    assert watched.step(SILENT, running=9.0, begun=9.0).rule != "lying"
    watched.step(SILENT, done=9.0)
    assert watched.core.state.clock.blind_since is None


def test_what_was_queued_before_anybody_looked_is_no_lie_when_it_begins() -> None:
    watched = ObservedCore()
    watched.step(SILENT, running=9.0)
    for _ in range(3):
        assert watched.step(SILENT, running=6.0, begun=3.0).rule != "lying"


def test_requests_that_no_gateway_received_make_signals_inconsistent_for_15_minutes() -> None:
    watched = ObservedCore()
    for _ in range(3):
        watched.step(GatewayTraffic(5.0, 5_000.0), running=5.0, begun=5.0)
    rules = [watched.step(SILENT, running=5.0, begun=5.0).rule for _ in range(4)]
    assert rules[-1] == "lying"
    silent = [watched.step(SILENT) for _ in range(200)]
    assert watched.core.state.trust.began == 0.0
    assert watched.core.state.clock.blind_since is None
    assert silent[-1].rule not in {"lying", "blind-up"}


def of_three_pools(core: ScalingCore, tick: int, *running: float) -> dict[str, PoolPlan]:
    """Returns the plans after a tick of three pools, each with a replica called 0.

    A tenth of the requests in flight ends in a tick, and as many arrive.
    """
    pools = {}
    for pool, runs in zip(("main", "other", "third"), running, strict=True):
        one = ReplicaMetrics("0", ReplicaState.READY, 500.0, 1.0, runs, 0.0, 0.0, finished=runs / 10)
        pools[pool] = PoolObservation(1, 1, replicas=(one,))
    return dict(core.step(Observation(tick * 5.0, GatewayTraffic(sum(running) / 10, 500.0), pools)).pools)


OTHER, THIRD = (replace(MODEL.pools[0], name=name) for name in ("other", "third"))
TWO = replace(MODEL, pools=(*MODEL.pools, OTHER))


def test_replicas_of_several_pools_may_have_one_name() -> None:
    core = ScalingCore(replace(TWO, pools=(*TWO.pools, THIRD)))
    for tick in range(60):
        plans = of_three_pools(core, tick, 2.0, 3.0, 40.0)
    assert core.state.trust.lying_since is None
    assert "lying" not in {plan.rule for plan in plans.values()}


def test_replicas_that_are_gone_are_forgotten_although_another_pool_is_unread() -> None:
    core = ScalingCore(TWO)
    for tick in range(60):
        seen = PoolObservation(
            1, 1, replicas=(ReplicaMetrics(f"r{tick}", ReplicaState.READY, 500.0, 1.0, 5.0, 0.0, 0.0, finished=1.0),)
        )
        core.step(Observation(tick * 5.0, GatewayTraffic(1.0, 500.0), {"main": seen, "other": PoolObservation(1, 1)}))
    assert core.state.trust.in_flight_of == {"main": {"r59": 5.0}, "other": {}}

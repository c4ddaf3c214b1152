"""Gateways are not believed where engines begin what nobody received, and are believed where it had only waited."""

from fairlead.profile import preset
from fairlead_autoscaler.scaling import (
    Core,
    GatewaySeen,
    Observation,
    PoolFacts,
    PoolPlan,
    PoolSeen,
    ReplicaSeen,
    ReplicaState,
    ScaledModel,
)

MODEL = ScaledModel("chat", 3.0, 0.2, (PoolFacts("main", minimum=0, maximum=8, profile=preset("l4-qwen8b")),))
SILENT = GatewaySeen(0.0, 0.0)


class Watched:
    """A core that is shown one replica, or none, every five seconds."""

    def __init__(self) -> None:
        self.core, self.now = Core(MODEL), 0.0

    def look(
        self, gateway: GatewaySeen | None, running: float = 0.0, begun: float = 0.0, done: float = 0.0, ready: int = 1
    ) -> PoolPlan:
        """The plan after one look."""
        self.now += 5.0
        one = ReplicaSeen("a", ReplicaState.READY, self.now, 1.0, running, 0.0, 0.0, finished=done, first_tokens=begun)
        seen = PoolSeen(ready, ready, replicas=(one,) * ready)
        return self.core.step(Observation(self.now, gateway, {"main": seen})).pools["main"]


def test_requests_that_a_gateway_held_are_no_lie_when_an_engine_begins_them() -> None:
    watched = Watched()
    for _ in range(3):
        watched.look(SILENT, ready=0)
    assert watched.look(GatewaySeen(13.0, 7_000.0, 9.0), ready=0).rule == "wake"
    assert watched.look(SILENT, running=9.0, begun=9.0).rule != "lying"
    watched.look(SILENT, done=9.0)
    assert watched.core.state.clock.blind_since is None


def test_what_was_queued_before_anybody_looked_is_no_lie_when_it_begins() -> None:
    watched = Watched()
    watched.look(SILENT, running=9.0)
    for _ in range(3):
        assert watched.look(SILENT, running=6.0, begun=3.0).rule != "lying"


def test_engines_that_go_on_beginning_what_no_gateway_received_show_a_lie_which_ends_a_quarter_of_an_hour_after_the_last() -> (
    None
):
    watched = Watched()
    for _ in range(3):
        watched.look(GatewaySeen(5.0, 5_000.0), running=5.0, begun=5.0)
    rules = [watched.look(SILENT, running=5.0, begun=5.0).rule for _ in range(4)]
    assert rules[-1] == "lying"
    silent = [watched.look(SILENT) for _ in range(200)]
    assert watched.core.state.trust.began == 0.0
    assert watched.core.state.clock.blind_since is None
    assert silent[-1].rule not in {"lying", "blind-up"}

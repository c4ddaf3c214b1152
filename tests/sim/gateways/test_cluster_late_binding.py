"""Late binding in a gateway cluster: each gateway holds its own requests, and none is lost."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import SloTargets
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import ENGINE_LOST, QUEUED, FleetOptions, FleetSimulation
from fairlead_sim.gateways.gateway_cluster import GatewayCluster
from fairlead_sim.gateways.simulated_gateway import ClusterOptions, SharingOptions
from fairlead_sim.gateways.single_gateway import RoutingOptions
from fairlead_sim.workload.traces import TraceRequest
from fairlead_testing.fleet_faults.runner import InvariantChecker

ENGINES = ("e-0", "e-1")
PROFILE = builtin_profile("l4-qwen8b")
AT = 1.0


def crowd(count: int) -> list[TraceRequest]:
    """Returns prompts of half a second each that share nothing and arrive at once."""
    tokens = int(0.5 / PROFILE.prefill_token_seconds)
    return [TraceRequest(f"r{number}", 0.0, tokens, 4, (1000 * number,), None) for number in range(count)]


class Fleet:
    """Gateways in front of two engines, with checked invariants and an event at ``AT`` seconds."""

    def __init__(
        self,
        gateways: int,
        rule: str = "dual-hash",
        happens: Callable[["Fleet", float], None] | None = None,
        choices: Mapping[str, str] | None = None,
    ) -> None:
        fleet = FleetOptions(ENGINES, PROFILE, 16, publishes_kv_events=True)
        routing = RoutingOptions(SloTargets(), b"secret", preset=rule, choices=choices or {})
        self.front = GatewayCluster(fleet, routing, ClusterOptions(gateways, SharingOptions(index=True)))
        self.guard = InvariantChecker(
            self.front,
            ENGINES,
            counts=self._counts,
            queues_requests=True,
            reachable=lambda request, live: [name for name in live if name not in self.front.unreachable_for(request)],
            last_arrival=0.0,
        )
        self.simulation = FleetSimulation(self.guard, fleet)
        self.waiting: list[str] = []
        self.at_engines: Counter[str] = Counter()
        self.simulation.schedule(AT, self._sample)
        if happens is not None:
            self.simulation.schedule(AT, partial(happens, self))

    def serve(self, count: int) -> list[RequestResult]:
        served = self.simulation.run(crowd(count))
        self.guard.check_end()
        assert self.guard.violations == []
        return served

    def _counts(self) -> list[tuple[str, int, int, float, float]]:
        return [
            (name, load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens)
            for loads in self.front.loads()
            for name, load in loads.items()
        ]

    def _sample(self, now: float) -> None:
        for flight in self.simulation.all_requests():
            if flight.instance == QUEUED:
                self.waiting.append(flight.request.id)
            elif flight.first_token_at is None:
                self.at_engines[flight.instance or ""] += 1


def whole(served: Sequence[RequestResult]) -> list[RequestResult]:
    return [one for one in served if one.error is None]


def test_each_gateway_sends_what_an_engine_can_begin_and_holds_the_rest() -> None:
    one, three, at_once = Fleet(1), Fleet(3), Fleet(3, "round-robin")
    for fleet in (one, three, at_once):
        assert len(whole(fleet.serve(24))) == 24
    assert one.at_engines == {"e-0": 1, "e-1": 1}
    assert three.at_engines == {"e-0": 3, "e-1": 3}, "one of each: nobody counts what others keep"
    assert len(one.waiting) > len(three.waiting) > 10
    assert at_once.waiting == []


def test_replayed_choices_are_kept_and_held_by_their_gateways() -> None:
    fleet = Fleet(3, choices={request.id: "e-0" for request in crowd(24)})
    served = fleet.serve(24)
    assert {one.instance for one in served} == {"e-0"}
    assert fleet.at_engines == {"e-0": 3}


def test_dualmap_holds_as_live_gateways_hold_it_and_moves_nothing() -> None:
    fleet = Fleet(3, "dualmap")
    served = whole(fleet.serve(24))
    assert len(served) == 24
    assert fleet.waiting
    assert all(one.retries == 0 for one in served)


def lose(fleet: Fleet, now: float) -> None:
    fleet.simulation.lose_engine("e-0", now)


def drain(fleet: Fleet, now: float) -> None:
    fleet.simulation.cordon_engine("e-0", now)


def cut_off(fleet: Fleet, now: float) -> None:
    fleet.front.set_unreachable(0, frozenset({"e-0"}), now)


def kill(fleet: Fleet, now: float) -> None:
    fleet.front.kill_gateway(0, now)


@pytest.mark.parametrize("happens", [lose, drain, cut_off, kill])
@pytest.mark.parametrize("gateways", [1, 3])
def test_held_requests_are_answered_once_under_all_events(
    happens: Callable[[Fleet, float], None], gateways: int
) -> None:
    fleet = Fleet(gateways, happens=happens)
    served = fleet.serve(30)
    kept = [one for one in served if one.id in fleet.waiting]
    assert len(kept) > 10
    assert whole(kept) == kept, "who had not begun is answered"
    assert all(one.error in (None, ENGINE_LOST) for one in served)
    assert sum(one.retries for one in kept) > 0
    if happens in (lose, drain):
        assert all(one.instance == "e-1" for one in kept)


def test_a_request_is_rerouted_by_the_gateway_that_holds_it() -> None:
    of: dict[str, tuple[int, int]] = {}

    def note(fleet: Fleet, now: float) -> None:
        before = {request: id(its) for request, its in fleet.front._gateway_of.items()}
        fleet.simulation.cordon_engine("e-0", now)
        after = {request: id(its) for request, its in fleet.front._gateway_of.items()}
        of.update({request: (before[request], after[request]) for request in before})

    served = Fleet(3, happens=note).serve(30)
    again = [one.id for one in served if one.retries]
    assert len({of[one][0] for one in again}) == 3
    assert all(of[one][0] == of[one][1] for one in again)


def test_a_killed_gateway_sends_nothing_any_more() -> None:
    sent: list[str] = []

    def end(fleet: Fleet, now: float) -> None:
        send, dying = fleet.simulation.send_queued_request, frozenset(fleet.waiting)

        def record_send(request_id: str, instance: str, now: float) -> None:
            sent.append(request_id)
            send(request_id, instance, now)

        fleet.simulation.send_queued_request = record_send  # type: ignore[method-assign]
        fleet.front.kill_gateway(0, now)
        assert not dying & set(sent), "the new one chooses, and sends what can begin as it arrives"

    served = Fleet(1, happens=end).serve(12)
    assert {one.error for one in served if one.retries} == {None}
    assert sent, "the new one keeps what cannot begin"

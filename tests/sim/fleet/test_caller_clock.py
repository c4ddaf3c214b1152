"""A fleet simulation under a caller's clock: the results of one run, and what observers receive."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.errors import BadInput
from fairlead.fleet.model import Model, SloTargets
from fairlead_gateway.routing import ModelRouter
from fairlead_sim.engine.sequence import EngineSequence
from fairlead_sim.fleet.request import InflightRequest
from fairlead_sim.fleet.simulation import CLIENT_GONE, EngineObserver, FleetOptions, FleetSimulation
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, SingleGateway
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TraceRequest

PROFILE = builtin_profile("l4-qwen8b")
REQUESTS = st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(1, 900), st.integers(1, 90)), min_size=1, max_size=20)


class Counts(EngineObserver):
    """The times of first and last tokens, and the gaps between tokens."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self.first: dict[str, float] = {}
        self.end: dict[str, float] = {}

    def on_gaps(self, tokens: int, seconds: float) -> None:
        self.gaps += [seconds] * tokens

    def on_first_token(self, sequence: EngineSequence, now: float) -> None:
        self.first[sequence.id] = now

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        self.end[sequence.id] = now


class Failures:
    """The errors of requests."""

    def __init__(self) -> None:
        self.errors: dict[str, str] = {}

    def __call__(self, inflight: InflightRequest, now: float) -> None:
        if inflight.error is not None:
            self.errors[inflight.request.id] = inflight.error


def gateway(profile: EngineProfile) -> SingleGateway:
    model = Model(NAMESPACE, MODEL, SloTargets(ttft_seconds=1.0), "dual-hash")
    prompts = TracePromptCache(16, secret=b"s", seed=b"m")
    return SingleGateway(ModelRouter(secret=b"s"), prompts.prefix_chain, {}, model, profile)


def trace(drawn: Sequence[tuple[float, int, int]]) -> list[TraceRequest]:
    return [
        TraceRequest(f"r{number}", at, prompt, output, (number * 10, number * 10 + 1)[: 1 + (prompt - 1) // 512])
        for number, (at, prompt, output) in enumerate(sorted(drawn))
    ]


def started(counts: EngineObserver, names: Sequence[str] = ("a",), failures: Failures | None = None) -> FleetSimulation:
    options = FleetOptions((), PROFILE, 16, keeps_results=False)
    front = gateway(PROFILE)
    front.on_membership((), 0.0)
    simulation = FleetSimulation(front, options, on_progress=failures)
    simulation.begin()
    for name in names:
        simulation.add_engine(name, 0.0, counts)
    return simulation


@settings(deadline=None, max_examples=50)
@given(REQUESTS, st.floats(0.01, 0.7))
def test_slices_of_time_give_the_results_of_one_run(drawn: list[tuple[float, int, int]], slice_seconds: float) -> None:
    requests, counts = trace(drawn), Counts()
    front = gateway(PROFILE)
    front.on_membership(["a"], 0.0)
    at_once = FleetSimulation(front, FleetOptions(("a",), PROFILE, 16)).run(requests)
    simulation = started(counts)
    arrived, now = 0, 0.0
    while arrived < len(requests) or simulation.open_requests:
        until = now + slice_seconds
        while arrived < len(requests) and requests[arrived].arrival < until:
            simulation.run_until(requests[arrived].arrival)
            simulation.arrive(requests[arrived], requests[arrived].arrival)
            arrived += 1
        simulation.run_until(until)
        simulation.settle(until)
        now = until
    for result in at_once:
        assert counts.end[result.id] == result.finish
        assert counts.first[result.id] - result.arrival == result.ttft_seconds
    gaps = [later - earlier for result in at_once for earlier, later in pairwise(result.token_times)]
    assert sorted(counts.gaps) == pytest.approx(sorted(gaps), rel=1e-6)


def test_a_client_that_gives_up_leaves_engine_and_router() -> None:
    counts, failures = Counts(), Failures()
    simulation = started(counts, failures=failures)
    for request in trace([(0.0, 900, 50), (0.0, 900, 50), (0.0, 900, 50)]):
        simulation.arrive(request, 0.0)
    simulation.run_until(0.05)
    assert simulation.abandon_request("r2", 0.05)
    assert not simulation.abandon_request("r2", 0.05)
    simulation.run_until(60.0)
    assert failures.errors == {"r2": CLIENT_GONE}
    assert sorted(counts.end) == ["r0", "r1"]
    assert not simulation.abandon_request("r0", 60.0)
    assert simulation.open_requests == 0


def test_an_engine_with_requests_cannot_be_removed_and_a_cordoned_one_can_return() -> None:
    counts = Counts()
    simulation = started(counts, ("a", "b"))
    for request in trace([(0.0, 900, 50), (0.0, 800, 50)]):
        simulation.arrive(request, 0.0)
    simulation.run_until(0.01)
    simulation.cordon_engine("a", 0.01)
    with pytest.raises(BadInput, match="has requests"):
        simulation.remove_engine("a")
    simulation.run_until(60.0)
    simulation.uncordon_engine("a", 60.0)
    with pytest.raises(BadInput, match="takes new ones"):
        simulation.remove_engine("a")
    simulation.cordon_engine("a", 60.0)
    simulation.remove_engine("a")
    assert list(simulation.engine_cores) == ["b"]
    assert len(counts.end) == 2


def test_a_request_for_one_engine_goes_past_the_router() -> None:
    counts = Counts()
    simulation = started(counts, ("a", "b"))
    for request in trace([(0.0, 100, 5)] * 4):
        simulation.arrive_at(request, "b", 0.0)
    core = simulation.engine_core("b")
    assert core is not None
    assert len(core.sequences()) == 4
    assert simulation.engine_core("c") is None
    simulation.run_until(10.0)
    assert len(counts.end) == 4

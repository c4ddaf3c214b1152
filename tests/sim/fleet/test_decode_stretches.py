"""Decode-only steps computed in one stretch give the results of single steps, to the last bit."""

from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Model, SloTargets
from fairlead_gateway.routing import ModelRouter
from fairlead_sim.engine.scheduler import EngineCore
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation, SimulationContext
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, SingleGateway
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TraceRequest

NAMES = ("a", "b")
PROFILES = st.builds(
    lambda blocks, sequences, budget: replace(
        builtin_profile("h100-llama8b"), kv_tokens=blocks * 16, max_sequences=sequences, step_tokens=budget
    ),
    blocks=st.integers(40, 200),
    sequences=st.integers(1, 8),
    budget=st.integers(64, 700),
)
REQUESTS = st.lists(
    st.tuples(st.floats(0.0, 3.0), st.integers(1, 600), st.integers(1, 120), st.integers(0, 3)), min_size=1, max_size=25
)
HAPPENINGS = st.lists(st.tuples(st.floats(0.0, 4.0), st.sampled_from(["lose", "join", "slow"])), max_size=3)


class ScriptedGateway(SingleGateway):
    """One router in front of engines that come, go and change their speed."""

    def __init__(self, profile: EngineProfile, happenings: Sequence[tuple[float, str]]) -> None:
        model = Model(NAMESPACE, MODEL, SloTargets(ttft_seconds=1.0), "dual-hash")
        prompts = TracePromptCache(16, secret=b"s", seed=b"m")
        super().__init__(ModelRouter(secret=b"s"), prompts.prefix_chain, {}, model, profile)
        self._happenings = happenings

    def start(self, simulation: SimulationContext) -> None:
        assert isinstance(simulation, FleetSimulation)
        super().start(simulation)
        self.on_membership(NAMES, 0.0)
        for at, what in self._happenings:
            simulation.schedule(at, lambda now, what=what: self._happen(simulation, what, now))  # type: ignore[misc]

    def _happen(self, course: FleetSimulation, what: str, now: float) -> None:
        names = sorted(course.engine_cores)
        if what == "lose" and len(names) > 1:
            course.lose_engine(names[0], now)
        elif what == "join":
            course.add_engine(f"new {now}", now)
        else:
            course.slow_engine(names[-1], 2.0, now)


def served(
    profile: EngineProfile, drawn: Sequence[tuple[float, int, int, int]], happenings: Sequence[tuple[float, str]]
) -> list[RequestResult]:
    requests = [
        TraceRequest(f"r{number}", at, prompt, output, tuple(range(family * 10, family * 10 + 1 + (prompt - 1) // 512)))
        for number, (at, prompt, output, family) in enumerate(drawn)
        if prompt + output <= profile.kv_tokens
    ]
    front = ScriptedGateway(profile, happenings)
    return FleetSimulation(front, FleetOptions(NAMES, profile, 16)).run(requests)


@settings(deadline=None)
@given(PROFILES, REQUESTS, HAPPENINGS)
def test_many_steps_at_once_are_the_single_steps_to_the_last_bit(
    profile: EngineProfile, drawn: list[tuple[float, int, int, int]], happenings: list[tuple[float, str]]
) -> None:
    at_once = served(profile, drawn, happenings)
    with patch.object(EngineCore, "steady_steps", lambda core: 0):
        one_by_one = served(profile, drawn, happenings)
    for quick, slow in zip(at_once, one_by_one, strict=True):
        assert (quick.token_times, quick.output_tokens) == (slow.token_times, slow.output_tokens)
        assert replace(quick, step_ends=(), spans=()) == replace(slow, step_ends=(), spans=())


def test_stretches_are_taken_at_once() -> None:
    counted = 0
    step = EngineCore.step

    def counting(core: EngineCore, now: float) -> object:
        nonlocal counted
        counted += 1
        return step(core, now)

    with patch.object(EngineCore, "step", counting):
        (one,) = served(builtin_profile("h100-llama8b"), [(0.0, 600, 200, 0)], [])
    assert len(one.token_times) == 200
    assert counted < 30  # a step for the prompt, one for each block of 16 tokens that fills, none after the end

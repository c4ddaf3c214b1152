"""Profile regression from traffic: any prior works, and time that is not computing is left out."""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead_gateway.profiles.observations import ComputedWork, EngineObserver, Observation, PrecedingStep
from fairlead_gateway.profiles.profile_estimator import (
    MIN_OBSERVATIONS,
    EngineRegression,
    ProfileRegression,
    waited_steps,
)
from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.lower_tiers import TierOptions
from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation
from fairlead_sim.workload.trace_prompts import trace_keys
from fairlead_sim.workload.traces import TraceRequest
from fairlead_testing.pytest_hooks.nightly import shortened

BLOCK_TOKENS = 512
SETTLE_SECONDS = 10.0


def chat(rate: float, seconds: float, *, seed: int, texts: int = 7) -> list[TraceRequest]:
    """Returns chat requests with prompts around 900 tokens, up to 8,000.

    Four of ten share one of some texts. Answers have 211 tokens on average.
    """
    draw, at, fresh = random.Random(seed), 0.0, 0
    requests: list[TraceRequest] = []
    while at < seconds:
        at += draw.expovariate(rate)
        tokens = min(8_000, max(20, int(draw.lognormvariate(6.8, 0.8))))
        blocks = -(-tokens // BLOCK_TOKENS)
        text = len(requests) % texts if draw.random() < 0.4 else None
        keys = tuple(fresh + index if text is None else -100 * text - index - 1 for index in range(blocks))
        fresh += blocks
        requests.append(TraceRequest(f"r{len(requests)}", at, tokens, max(2, int(draw.expovariate(1 / 211))), keys))
    return requests


class Watching:
    """A round-robin policy over `engines` engines that learns a profile until `until`.

    It knows the cached tokens of all but every tenth prompt.
    """

    def __init__(self, prior: EngineProfile, *, engines: int, until: float) -> None:
        self.fit = EngineRegression(prior)
        self._watches = [EngineObserver(prior.step_tokens) for _ in range(engines)]
        self._where: dict[str, int] = {}
        self._until = until
        self._settled = 0.0
        self._simulation: FleetSimulation | None = None

    def start(self, simulation: FleetSimulation) -> None:
        self._simulation = simulation

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        engine = self._where[request.id] = len(self._where) % len(self._watches)
        on_gpu, cached = self._cached_tokens(engine, request)
        if len(self._where) % 10 == 0:
            on_gpu = cached = 0
        loaded = (cached - on_gpu, 0.0, 0.0)
        self._watches[engine].on_dispatch(request.id, now, request.prompt_tokens, cached, loaded)
        return f"e{engine}", ""

    def on_rejected(self, request: str, now: float) -> None:
        self._watches[self._where[request]].on_abandoned(request, now)

    def on_first_token(self, request: str, now: float) -> None:
        self._watches[self._where[request]].on_first_token(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        watch = self._watches[self._where[sequence.id]]
        spans = watch.on_finish(
            sequence.id, now, cached_tokens=sequence.cached_tokens, output_tokens=sequence.generated
        )
        if now > self._until:
            return
        for span in spans:
            self.fit.add(span, now)
        if now - self._settled >= SETTLE_SECONDS:
            self._settled = now
            self.fit.solve()

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """Does nothing, since `route` reads the caches directly."""

    def _cached_tokens(self, engine: int, request: TraceRequest) -> tuple[int, int]:
        """Returns the cached tokens in the engine's KV memory, and in all its memory."""
        assert self._simulation is not None
        keys = list(trace_keys(request.blocks, request.prompt_tokens, BLOCK_TOKENS))
        core, usable = self._simulation.engine_cores[f"e{engine}"], keys[: (request.prompt_tokens - 1) // BLOCK_TOKENS]
        return BLOCK_TOKENS * core.matched_blocks(usable, []), BLOCK_TOKENS * core.matched_blocks(usable)

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        raise AssertionError("no engine comes or goes")

    def on_lost(self, request: str, now: float) -> None:
        raise AssertionError("no engine is lost")


def learned(true: EngineProfile, prior: EngineProfile, *, load: float, seconds: float = 300.0) -> ProfileRegression:
    """Returns the fit after five minutes of chat on four engines at that load."""
    request = true.prefill_time(1_200) + 211 * (true.step_seconds + true.weights_seconds) / 30
    watching = Watching(prior, engines=4, until=seconds)
    course = FleetSimulation(watching, FleetOptions([f"e{index}" for index in range(4)], true, BLOCK_TOKENS))
    course.run(chat(4 * load / request, seconds, seed=1))
    watching.fit.solve()
    return watching.fit.best


H100 = builtin_profile("h100-llama8b")
SEEN_PROMPTS = [(100, 0), (300, 0), (1_000, 0), (1_000, 512), (3_000, 0), (3_000, 1_536), (8_000, 0), (8_000, 4_096)]


def test_the_price_of_loads_from_cpu_memory_is_learned() -> None:
    true = replace(H100, kv_tokens=96 * BLOCK_TOKENS)
    seconds = true.prefill_token_seconds / 4
    tier = TierOptions("cpu", 4_096 * BLOCK_TOKENS, seconds)
    watching = Watching(true, engines=4, until=1_200.0)
    options = FleetOptions([f"e{index}" for index in range(4)], true, BLOCK_TOKENS, lower_tiers=[tier])
    FleetSimulation(watching, options).run(chat(0.5, 1_200.0, seed=1, texts=40))
    fitted = watching.fit.solve()

    def first_token(profile: EngineProfile, on_cpu: int) -> float:
        return profile.load_time(on_cpu, 0.0, 0.0) + profile.prefill_time(on_cpu + 512, on_cpu)

    true = replace(true, cpu_token_seconds=seconds)
    for tokens in (1_024, 4_096):
        assert first_token(fitted, tokens) == pytest.approx(first_token(true, tokens), rel=0.15)
    assert fitted.disk_token_seconds == 0.0


def of_engine(true: EngineProfile, prior: EngineProfile = H100) -> EngineProfile:
    """Returns the prior with the sizes that the engine's metrics report."""
    return replace(prior, kv_tokens=true.kv_tokens, max_sequences=true.max_sequences, step_tokens=true.step_tokens)


def worst_prefill(fitted: EngineProfile, true: EngineProfile) -> float:
    """Returns the largest relative error over typical prompts."""
    return max(abs(fitted.prefill_time(*prompt) / true.prefill_time(*prompt) - 1.0) for prompt in SEEN_PROMPTS)


def worst_decode(fitted: EngineProfile, true: EngineProfile) -> float:
    def step(profile: EngineProfile, batch: int) -> float:
        return profile.step_time(computed=batch, sequences=batch, resident=batch * 1_200)

    return max(abs(step(fitted, batch) / step(true, batch) - 1.0) for batch in (1, 8, 32))


@pytest.mark.parametrize(
    ("name", "load"),
    shortened(
        list(itertools.product(("a100-qwen7b", "910b4", "h100-llama8b"), (0.3, 0.7))),
        [("a100-qwen7b", 0.3), ("910b4", 0.7)],
    ),
)
def test_five_minutes_of_traffic_teach_an_engine_that_nobody_profiled(name: str, load: float) -> None:
    true = builtin_profile(name)
    fitted = learned(true, of_engine(true), load=load).profile()
    assert worst_prefill(fitted, true) <= 0.15
    assert worst_decode(fitted, true) <= 0.15


def test_profile_of_another_engine_is_corrected_from_fast_to_slow_and_back() -> None:
    both_ways = (("l4-qwen8b", H100), ("h100-llama8b", builtin_profile("l4-qwen8b")))
    for name, prior in shortened((*both_ways, ("tiny-cpu", H100)), both_ways):
        true = builtin_profile(name)
        fitted = learned(true, of_engine(true, prior), load=0.3).profile()
        assert worst_prefill(fitted, true) <= 0.15, name


def test_an_overloaded_engine_does_not_become_a_slow_one() -> None:
    true = builtin_profile("l4-qwen8b")  # 28,000 tokens of memory: prompts wait for free blocks, not for a step
    fitted = learned(true, of_engine(true), load=0.7).profile()
    assert worst_prefill(fitted, true) <= 0.25


def span(seconds: float, tokens: float) -> Observation:
    work = ComputedWork.of_prompt(tokens, 0.0)
    work.steps = -(-tokens // H100.step_tokens)
    return Observation(seconds, work, 0.0, 0.0)


def taught(fit: ProfileRegression, factor: float, spans: int, *, at: float = 0.0) -> float:
    for number in range(spans):
        tokens = 200.0 + 400.0 * (number % 20)
        fit.add(span(factor * H100.prefill_time(tokens), tokens), at + number)
        if number % 20 == 19:
            fit.solve()
    fit.solve()
    return at + spans


def test_the_prior_stands_until_enough_was_seen() -> None:
    fit = ProfileRegression(H100)
    taught(fit, 3.0, int(MIN_OBSERVATIONS) - 1)
    assert fit.profile() == H100


def test_a_change_of_pace_is_followed_and_the_old_one_forgotten() -> None:
    fit = ProfileRegression(H100)
    at = taught(fit, 1.0, 400)
    assert worst_prefill(fit.profile(), H100) < 0.02
    taught(fit, 1.35, 2_400, at=at)
    slowdown = fit.profile().prefill_time(4_000) / H100.prefill_time(4_000)
    assert math.isclose(slowdown, 1.35, rel_tol=0.03)


@pytest.mark.parametrize("wrong", [100.0, 0.01])
def test_two_percent_of_times_wrong_by_a_hundred_move_the_profile_little(wrong: float) -> None:
    fit = ProfileRegression(H100)
    for number in range(1_000):
        tokens = 200.0 + 400.0 * (number % 20)
        fit.add(span((wrong if number % 50 == 49 else 1.0) * H100.prefill_time(tokens), tokens), float(number))
        if number % 20 == 19:
            fit.solve()
    assert worst_prefill(fit.profile(), H100) < 0.1


def test_times_that_scatter_are_learned_as_what_they_are_on_average() -> None:
    fit, draw = ProfileRegression(H100), random.Random(5)
    for number in range(2_000):
        tokens = 200.0 + 400.0 * (number % 20)
        factor = draw.uniform(0.5, 1.5)
        fit.add(span(factor * H100.prefill_time(tokens), tokens), float(number))
        if number % 20 == 19:
            fit.solve()
    fitted, true = (sum(profile.prefill_time(*prompt) for prompt in SEEN_PROMPTS) for profile in (fit.profile(), H100))
    assert math.isclose(fitted, true, rel_tol=0.05)


def test_no_coefficient_more_than_doubles_at_a_time_nor_leaves_its_bounds() -> None:
    fit = ProfileRegression(H100)
    for number in range(100):
        fit.add(span(1_000.0, 1_000.0), float(number))
    before = fit.profile()
    after = fit.solve()
    assert after.prefill_token_seconds <= 2 * before.prefill_token_seconds * (1 + 1e-9)
    for _ in range(50):
        after = fit.solve()
    assert after.prefill_token_seconds <= 64 * H100.prefill_token_seconds * (1 + 1e-9)


def test_a_token_always_costs_something() -> None:
    fit = ProfileRegression(H100)
    for number in range(400):
        tokens = 1_000.0 + 10.0 * number
        fit.add(span(H100.attention_seconds * tokens * tokens / 2, tokens), float(number))
        if number % 20 == 19:
            fit.solve()
    assert 0.0 < fit.profile().prefill_token_seconds < H100.prefill_token_seconds / 10


def test_nonsense_is_not_learned() -> None:
    fit = ProfileRegression(H100)
    fit.add(span(0.0, 1_000.0), 0.0)
    fit.add(span(-1.0, 1_000.0), 0.0)
    fit.add(replace(span(1.0, 1_000.0), peak_tokens=H100.kv_tokens), 0.0)
    assert fit.observations == 0.0
    assert fit.error is None


@pytest.mark.parametrize(
    ("began_mid_step", "share_of_step", "ahead", "waited"),
    [
        (False, None, 1.0, 0.0),  # the engine was idle
        (True, None, 0.0, 0.5),
        (True, None, 1.0, 1.5),
        (False, 0.9, 1.0, 1.0),  # it came during the step before
        (False, 1.1, 1.0, 0.0),  # it came before that step began
        (False, 0.9, 0.0, 0.0),
    ],
)
def test_a_prompt_waits_for_the_present_step_and_for_one_that_is_planned(
    began_mid_step: bool, share_of_step: float | None, ahead: float, waited: float
) -> None:
    seconds = H100.step_time(computed=1_003, sequences=4, resident=5_000, attention=500_000.0)
    preceding = () if share_of_step is None else (PrecedingStep(share_of_step * seconds, 1_000.0, 500_000.0, 3),)
    run = Observation(1.0, ComputedWork(), 3.0, 5_000.0, began_mid_step=began_mid_step, preceding=preceding)
    assert waited_steps(run, H100, ahead) == waited


@pytest.mark.parametrize("ahead", [0.0, 1.0])
def test_whether_an_engine_plans_ahead_shows_in_its_first_tokens(ahead: float) -> None:
    fit = EngineRegression(H100)
    step = H100.step_time(computed=4, sequences=4, resident=4_000)
    for number in range(400):
        tokens = 200.0 + 400.0 * (number % 20)
        run = replace(span(1.0, tokens), sequences=4.0, resident=4_000.0, began_mid_step=number % 3 > 0)
        waited = waited_steps(run, H100, ahead)
        prefill = H100.step_time(computed=int(tokens) + 4, sequences=5, resident=4_000, attention=run.work.attention)
        fit.add(replace(run, seconds=prefill + waited * step), float(number))
        fit.add(Observation(100 * step, ComputedWork(), 4.0, 4_000.0, steps=100.0), float(number))
        if number % 20 == 19:
            fit.solve()
    assert fit.best.steps_ahead == ahead
    assert worst_prefill(fit.best.profile(), H100) <= 0.05

"""More load never gives fewer replicas, for any engines, requests and SLOs."""

from dataclasses import dataclass, replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role
from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ScalingCore,
    decide,
)
from fairlead_testing.autoscaler.control_loop import ITL, MISSES, OUTPUTS, PROFILES, PROMPTS, TTFT
from fairlead_testing.pytest_hooks.nightly import shortened

NIGHTS = settings(max_examples=shortened(2 * settings().max_examples, 10))
"""Ten thousand series each in the nightly run."""
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Traffic:
    """So many ticks of five seconds in which so many requests of so many tokens come."""

    ticks: int
    requests: float
    prompt: float


MODELS = st.builds(
    lambda profile, role, ttft, itl, miss, kilo: ModelSpec(
        "drawn",
        ttft,
        itl,
        (PoolSpec("main", role, 1.0, 0, _MOST, profile, 60.0, 120.0),),
        1.0 - miss,
        ttft_per_kilo_token_seconds=kilo,
    ),
    profile=PROFILES,
    role=st.sampled_from(list(Role)),
    ttft=TTFT,
    itl=ITL,
    miss=MISSES,
    kilo=st.sampled_from([0.0, 0.0, 0.2]),
)
TRAFFIC = st.lists(st.builds(Traffic, st.integers(1, 20), st.integers(0, 300).map(float), PROMPTS), max_size=4)


class Pool:
    """A pool that gets planned replicas at once and answers at once.

    output: tokens of an answer; None if its engines report nothing.
    """

    def __init__(self, model: ModelSpec, output: float | None) -> None:
        self.core, self.output = ScalingCore(model), output
        self.now, self.replicas, self.ended = 0.0, 1, 0.0

    def observation(self, seen: GatewayTraffic) -> Observation:
        """Returns the next observation, with so much traffic.

        Engines report the traffic before as finished.
        """
        told: tuple[ReplicaMetrics, ...] = ()
        if self.output is not None and self.replicas:
            told = (self._metrics(self.ended / self.replicas, self.output),)
        pool = PoolObservation(self.replicas, self.replicas, replicas=told)
        return Observation(self.now + 5.0, seen, {"main": pool})

    def _metrics(self, ended: float, output: float) -> ReplicaMetrics:
        return ReplicaMetrics(
            "r",
            ReplicaState.READY,
            500.0,
            60.0,
            running=ended,
            waiting=0.0,
            generated_tokens=ended * output,
            itl_seconds=ended * output * 0.05,
            finished=ended,
            first_tokens=ended,
        )

    def take(self, seen: GatewayTraffic) -> int:
        """Replicas after that look."""
        self.replicas = self.core.step(self.observation(seen)).pools["main"].replicas
        self.now, self.ended = self.now + 5.0, seen.arrivals
        return self.replicas


def after(model: ModelSpec, output: float | None, traffic: list[Traffic]) -> Pool:
    """Returns a pool after that traffic."""
    pool = Pool(model, output)
    for part in traffic:
        for _ in range(part.ticks):
            pool.take(GatewayTraffic(part.requests, part.requests * part.prompt))
    return pool


def planned(pool: Pool, seen: GatewayTraffic) -> int:
    """Returns the plan of a tick with so much traffic, without keeping its state."""
    model, state = pool.core.model, pool.core.state
    return decide(state, pool.observation(seen), model, pool.core.settings)[1].pools["main"].replicas


def as_before(pool: Pool, prompt: float) -> float:
    """Returns the prompt tokens of more requests like those before.

    That is ``prompt`` once the prompt length is settled, as it always is then. Until then the
    present requests are part of the estimate. More of shorter ones are another load then: the
    same tokens in smaller pieces, which may need fewer replicas (decision 0038).
    """
    known = pool.core.state.lengths
    after_look = decide(
        pool.core.state, pool.observation(GatewayTraffic(0.0, 0.0)), pool.core.model, pool.core.settings
    )[0].lengths
    return prompt if after_look.settled_prompt is not None else max(prompt, known.prompt.slow_mean(prompt))


AT_A_MILLISECOND = EngineProfile("A", 1e-6, step_seconds=1e-3, kv_tokens=2_000, max_sequences=1, step_tokens=16)
USUAL = EngineProfile("S", 3.3e-4, step_seconds=28e-3, kv_tokens=40_000, max_sequences=64, step_tokens=512)
ONE_LONG = [Traffic(1, 0.0, 1.0), Traffic(1, 1.0, 30_000.0)]
LONG_THEN_SHORT = [Traffic(1, 0.0, 1.0), Traffic(1, 40.0, 2_000.0), Traffic(4, 25.0, 10.0)]


def of(profile: EngineProfile, ttft: float, miss: float) -> ModelSpec:
    """Returns a model on such engines."""
    return ModelSpec(
        "drawn", ttft, None, (PoolSpec("main", Role.SERVE, 1.0, 0, _MOST, profile, 60.0, 120.0),), 1.0 - miss
    )


@NIGHTS
@example(of(AT_A_MILLISECOND, 0.001, 1e-4), 1.0, ONE_LONG, 13, 137, 0, 1.0)
@example(of(USUAL, 3.0, 0.01), 100.0, LONG_THEN_SHORT, 36, 4, 0, 10.0)
@given(MODELS, OUTPUTS, TRAFFIC, st.integers(0, 300), st.integers(0, 300), st.integers(0, 50), st.floats(1, 3e4))
def test_more_requests_or_more_that_wait_now(
    model: ModelSpec, output: float, traffic: list[Traffic], few: int, more: int, held: int, prompt: float
) -> None:
    pool = after(model, output, traffic)
    less = planned(pool, GatewayTraffic(float(few), few * prompt))
    assert less <= planned(pool, GatewayTraffic(float(few), few * prompt, float(held)))
    prompt = as_before(pool, prompt)
    less = planned(pool, GatewayTraffic(float(few), few * prompt))
    assert less <= planned(pool, GatewayTraffic(float(few + more), (few + more) * prompt))


def test_the_request_from_which_on_the_last_minute_is_enough_lowers_nothing() -> None:
    model = of(USUAL, 3.0, 0.01)
    pool = after(model, None, LONG_THEN_SHORT)
    assert as_before(pool, 700.0) == 700.0
    levels = []
    for requests in range(1, 200):
        plan = decide(
            pool.core.state, pool.observation(GatewayTraffic(requests, requests * 700.0)), model, pool.core.settings
        )[1]
        level = plan.pools["main"].inputs["level_replicas"].value
        assert level is not None
        levels.append(level)
    assert levels == sorted(levels)
    pool = after(of(AT_A_MILLISECOND, 0.001, 1e-4), 1.0, ONE_LONG)  # and here not even where they are shorter
    counts = [planned(pool, GatewayTraffic(requests, requests)) for requests in (13, 148, 149, 150)]
    assert counts == sorted(counts)


@NIGHTS
@given(MODELS, OUTPUTS, TRAFFIC, st.integers(0, 300), PROMPTS, st.floats(1.0, 30.0))
def test_longer_prompts_now(
    model: ModelSpec, output: float, traffic: list[Traffic], requests: int, prompt: float, times: float
) -> None:
    model = replace(model, ttft_per_kilo_token_seconds=0.0)  # where longer prompts have longer, they may take fewer
    pool = after(model, output, traffic)
    less = planned(pool, GatewayTraffic(float(requests), requests * prompt))
    assert less <= planned(pool, GatewayTraffic(float(requests), requests * prompt * times))


@NIGHTS
@given(MODELS, PROMPTS, st.integers(1, 300), st.floats(1.0, 10.0), st.floats(1.0, 10.0), st.integers(1, 90))
def test_more_requests_and_longer_ones_all_the_time(
    model: ModelSpec, prompt: float, requests: int, more: float, longer: float, ticks: int
) -> None:
    """Engines report nothing.

    With more requests they would show earlier how short answers are, and their speed under load.
    """
    model = replace(model, ttft_per_kilo_token_seconds=0.0)
    less = after(model, None, [Traffic(ticks, float(requests), prompt)])
    many = after(model, None, [Traffic(ticks, round(requests * more), prompt * longer)])
    assert less.replicas <= many.replicas


def test_an_unreachable_ttft_is_reported_and_lowers_no_number() -> None:
    profile = EngineProfile("S", 3.3e-4, step_seconds=28e-3, kv_tokens=40_000, max_sequences=64, step_tokens=512)
    model = ModelSpec("chat", 0.05, None, (PoolSpec("main", minimum=1, maximum=60, profile=profile),))
    found = [after(model, None, [Traffic(60, 5.0, prompt)]) for prompt in (50.0, 180.0, 600.0, 2_000.0)]
    counts = [pool.replicas for pool in found]
    assert counts == sorted(counts)
    assert counts[-1] <= 10
    plan = found[-1].core.step(found[-1].observation(GatewayTraffic(5.0, 10_000.0))).pools["main"]
    assert "TTFT target cannot be met: one request alone takes" in plan.reason

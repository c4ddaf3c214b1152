"""Properties of all plans: bounds, monotonicity, and states that go through JSON."""

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile
from fairlead.errors import BadInput
from fairlead.fleet.model import Role
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
    decide,
)
from fairlead_autoscaler.core.state import decode_state, encode_state
from fairlead_testing.autoscaler.control_loop import ITL, MISSES, OUTPUTS, PROFILES, PROMPTS, SMALL_ENGINE, TTFT
from fairlead_testing.pytest_hooks.nightly import shortened

_BOUNDS = (0.5, 1.0, 3.0, 10.0)
_LATE = 15.0
"""A tick this late may just be late: a clock wrong by seconds looks the same."""
_WRONG = (math.nan, math.inf, -math.inf, -5.0, 1e300)


def model_of(minimum: int, maximum: int) -> ModelSpec:
    """Returns a model with one pool between these bounds; replicas start in about two minutes."""
    pool = PoolSpec("main", minimum=minimum, maximum=maximum, profile=SMALL_ENGINE)
    pool = replace(pool, startup_p50_seconds=120.0, startup_p90_seconds=250.0)
    return ModelSpec("chat", 3.0, 0.15, (pool,), ttft_bounds=_BOUNDS, itl_bounds=_BOUNDS)


@dataclass(frozen=True, slots=True)
class Minute:
    """A stretch of a series: ticks, requests per tick, and the state of the signals."""

    ticks: int
    requests: int
    signals: str
    wrong: float
    skew: float


MINUTES = st.lists(
    st.builds(
        Minute,
        ticks=st.integers(1, 30),
        requests=st.integers(0, 80),
        signals=st.sampled_from(["there", "there", "there", "missing", "engines missing", "zero", "wrong"]),
        wrong=st.sampled_from(_WRONG),
        skew=st.sampled_from([0.0, 0.0, 0.0, -700.0, 2.0, 5_000.0]),
    ),
    min_size=1,
    max_size=8,
)


class Cluster:
    """The pods of a plan. The newest end first; new ones are ready after two minutes.

    Requests take a tick.
    """

    def __init__(self, model: ModelSpec, replicas: int) -> None:
        self.now = 0.0
        self.model = model
        self.born = {f"r{index}": -1_000.0 for index in range(replicas)}
        self.count = replicas
        self.running: dict[str, float] = {}

    def observe(self, minute: Minute, first: bool) -> Observation:
        """Returns the next observation, five seconds and the clock's error later."""
        self.now += 5.0 + (minute.skew if first else 0.0)
        ready = [name for name, born in self.born.items() if self.now - born >= 120.0]
        pending = len(self.born) - len(ready)
        zero, wrong = minute.signals == "zero", minute.signals == "wrong"
        replicas = None
        if minute.signals in ("there", "zero", "wrong"):
            share = minute.requests / max(1, len(ready))
            what = minute.wrong if wrong else None
            replicas = tuple(
                self._replica(name, 0.0 if zero else self.running.get(name, 0.0), 0.0 if zero else share, what)
                for name in ready
            )
        self.running = dict.fromkeys(ready, minute.requests / max(1, len(ready)))
        gateway = None
        if minute.signals != "missing":
            arrivals = 0.0 if zero else float(minute.requests)
            gateway = (
                GatewayTraffic(minute.wrong, 1.0, minute.wrong) if wrong else GatewayTraffic(arrivals, arrivals * 900.0)
            )
        pool = PoolObservation(len(self.born), len(ready), pending, replicas=replicas)
        return Observation(self.now, gateway, {"main": pool})

    def _replica(self, name: str, ended: float, began: float, wrong: float | None) -> ReplicaMetrics:
        value, running = (ended, began) if wrong is None else (wrong, wrong)
        return ReplicaMetrics(
            name,
            ReplicaState.READY,
            500.0,
            120.0,
            running=running,
            waiting=0.0,
            kv_share=0.3,
            prompt_tokens=value * 900.0,
            generated_tokens=value * 200.0,
            itl_seconds=value * 200.0 * 0.06,
            finished=value,
            first_tokens=value,
            ttft_counts=(value, 0.0, 0.0, 0.0, 0.0),
        )

    def apply(self, plan: PoolPlan) -> None:
        """Makes the pods as planned."""
        wanted = plan.replicas
        while len(self.born) > wanted:
            self.born.pop(max(self.born, key=lambda name: self.born[name]))
        while len(self.born) < wanted:
            self.count += 1
            self.born[f"r{self.count}"] = self.now


NIGHTS = settings(max_examples=shortened(2 * settings.default.max_examples, 10))
"""Ten thousand series each in the nightly run."""


@NIGHTS
@given(MINUTES, st.integers(0, 3), st.integers(3, 40), st.integers(0, 12), st.integers(0, 60))
def test_plans_stay_within_bounds_and_doubt_or_a_restart_lowers_nothing(
    minutes: list[Minute], minimum: int, maximum: int, replicas: int, restart: int
) -> None:
    model = model_of(minimum, maximum)
    cluster, core = Cluster(model, min(max(replicas, minimum), maximum)), ScalingCore(model)
    watched, ticks = 0.0, 0
    for minute in minutes:
        for tick in range(minute.ticks):
            elapsed = 5.0 + (minute.skew if tick == 0 else 0.0)
            watched += elapsed if 0.0 < elapsed <= _LATE else 5.0 if elapsed > 0.0 else 0.0
            if ticks == restart or not ticks:
                core, watched = ScalingCore(model), 0.0
            had = len(cluster.born)
            plan = core.step(cluster.observe(minute, tick == 0)).pools["main"]
            assert minimum <= plan.replicas <= maximum
            if watched < 120.0 or minute.signals in ("missing", "wrong"):
                assert plan.replicas >= had, plan
            cluster.apply(plan)
            ticks += 1


@NIGHTS
@given(MINUTES, st.sampled_from(["missing", "wrong"]), st.sampled_from(_WRONG), st.integers(1, 12))
def test_what_makes_no_sense_or_is_missing_for_less_than_a_minute_moves_nothing(
    minutes: list[Minute], signals: str, wrong: float, ticks: int
) -> None:
    model = model_of(0, 40)
    cluster, core = driven(model, minutes)
    known = Minute(1, minutes[-1].requests, "there", 0.0, 0.0)
    before = core.step(cluster.observe(known, False)).pools["main"]
    assume(before.inputs["need_replicas"].age_seconds is None)  # else it was in doubt before, and the minute began then
    cluster.apply(before)
    had = len(cluster.born)
    for tick in range(ticks):
        plan = core.step(cluster.observe(Minute(1, 20, signals, wrong, 0.0), False)).pools["main"]
        assert plan.replicas == had, (tick, plan)
        cluster.apply(plan)


@NIGHTS
@given(MINUTES, st.integers(0, 80), st.integers(0, 12))
def test_a_replica_that_starts_counts_as_one_that_is_there(minutes: list[Minute], requests: int, pending: int) -> None:
    model = model_of(0, 60)
    cluster, core = driven(model, minutes)
    seen = cluster.observe(Minute(1, requests, "there", 0.0, 0.0), False)
    pool = replace(seen.pools["main"], replicas=())
    there = len(cluster.born)
    starting = min(pending, there)

    def planned(pending: int) -> PoolPlan:
        pods = replace(pool, ready=there - pending, pending=pending)
        return decide(core.state, replace(seen, pools={"main": pods}), model, core.settings)[1].pools["main"]

    ready, waiting = planned(0), planned(starting)
    assert waiting.inputs["target_replicas"] == ready.inputs["target_replicas"]
    if waiting.rule != "hedged":
        finished = waiting.rule == "starting"  # the last start is not cancelled while all that are ready are needed
        assert waiting.replicas - (waiting.inputs["hedged_replicas"].value or 0.0) <= ready.replicas + finished


@settings(max_examples=shortened(settings.default.max_examples, 3))
@given(st.integers(1, 60), st.integers(1, 12))
def test_silence_lowers_in_time_and_its_like_without_metrics_never(requests: int, replicas: int) -> None:
    model = model_of(1, 40)
    cluster, core = driven(model, [Minute(60, requests, "there", 0.0, 0.0)], replicas)
    blind, state = replace_cluster(cluster), core.state
    for _ in range(140):
        cluster.apply(core.step(cluster.observe(Minute(1, 0, "there", 0.0, 0.0), False)).pools["main"])
    assert len(cluster.born) == 1
    core.state = state
    had = len(blind.born)
    for _ in range(140):
        blind.apply(core.step(blind.observe(Minute(1, 0, "missing", 0.0, 0.0), False)).pools["main"])
        assert len(blind.born) >= had
        had = len(blind.born)


def driven(model: ModelSpec, minutes: list[Minute], replicas: int = 3) -> tuple[Cluster, ScalingCore]:
    """Returns a cluster and a core after these minutes."""
    cluster, core = Cluster(model, replicas), ScalingCore(model)
    for minute in minutes:
        for tick in range(minute.ticks):
            cluster.apply(core.step(cluster.observe(minute, tick == 0)).pools["main"])
    return cluster, core


def replace_cluster(cluster: Cluster) -> Cluster:
    """Returns another cluster with the same pods at the same time."""
    other = Cluster(cluster.model, 0)
    other.now, other.count = cluster.now, cluster.count
    other.born, other.running = dict(cluster.born), cluster.running
    return other


MONOTONICITY_NIGHTS = settings(max_examples=shortened(2 * settings().max_examples, 10))
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
        replicas: tuple[ReplicaMetrics, ...] = ()
        if self.output is not None and self.replicas:
            replicas = (self._metrics(self.ended / self.replicas, self.output),)
        pool = PoolObservation(self.replicas, self.replicas, replicas=replicas)
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


@MONOTONICITY_NIGHTS
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


@MONOTONICITY_NIGHTS
@given(MODELS, OUTPUTS, TRAFFIC, st.integers(0, 300), PROMPTS, st.floats(1.0, 30.0))
def test_longer_prompts_now(
    model: ModelSpec, output: float, traffic: list[Traffic], requests: int, prompt: float, times: float
) -> None:
    model = replace(model, ttft_per_kilo_token_seconds=0.0)  # where longer prompts have longer, they may take fewer
    pool = after(model, output, traffic)
    less = planned(pool, GatewayTraffic(float(requests), requests * prompt))
    assert less <= planned(pool, GatewayTraffic(float(requests), requests * prompt * times))


@MONOTONICITY_NIGHTS
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
    pools = [after(model, None, [Traffic(60, 5.0, prompt)]) for prompt in (50.0, 180.0, 600.0, 2_000.0)]
    counts = [pool.replicas for pool in pools]
    assert counts == sorted(counts)
    assert counts[-1] <= 10
    plan = pools[-1].core.step(pools[-1].observation(GatewayTraffic(5.0, 10_000.0))).pools["main"]
    assert "TTFT target cannot be met: one request alone takes" in plan.reason


def _observation(tick: int) -> Observation:
    pool = PoolObservation(3, 3, replicas=())
    return Observation(tick * 5.0, GatewayTraffic(5.0 + tick % 3, 4_000.0), {"main": pool})


def test_a_core_with_a_recorded_state_plans_as_the_one_that_went_on() -> None:
    model = ModelSpec("chat", 3.0, 0.15, (PoolSpec("main", minimum=1, maximum=9),))
    core = ScalingCore(model)
    for tick in range(100):
        core.step(_observation(tick))
    other = ScalingCore(model, state=decode_state(encode_state(core.state)))
    assert other.state == core.state
    for tick in range(100, 200):
        assert other.step(_observation(tick)) == core.step(_observation(tick))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"clock": 3}', b'{"pools": {"main": {"hedged": "many"}}}'])
def test_what_is_no_state_is_refused(data: bytes) -> None:
    with pytest.raises(BadInput):
        decode_state(data)

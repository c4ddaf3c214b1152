"""What holds of the scaling core whatever happens: drawn loads, metrics that go missing, lie or make no sense, and wrong clocks."""

import math
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from fairlead.profile import EngineProfile
from fairlead_autoscaler.scaling import (
    Core,
    GatewaySeen,
    Observation,
    Plan,
    PoolFacts,
    PoolSeen,
    ReplicaSeen,
    ReplicaState,
    ScaledModel,
    decide,
)

_PROFILE = EngineProfile(
    "S", 3.3e-4, step_seconds=28e-3, resident_token_seconds=2.2e-7, kv_tokens=40_000, max_sequences=64, step_tokens=512
)
_BOUNDS = (0.5, 1.0, 3.0, 10.0)
_WRONG = (math.nan, math.inf, -math.inf, -5.0, 1e300)


def model_of(minimum: int, maximum: int) -> ScaledModel:
    """One pool between these bounds, whose replicas start in about two minutes."""
    pool = PoolFacts("main", minimum=minimum, maximum=maximum, profile=_PROFILE)
    pool = replace(pool, startup_p50_seconds=120.0, startup_p90_seconds=250.0)
    return ScaledModel("chat", 3.0, 0.15, (pool,), ttft_bounds=_BOUNDS, itl_bounds=_BOUNDS)


@dataclass(frozen=True, slots=True)
class Minute:
    """A stretch of a series: so many ticks of so many requests a tick, and what becomes of the signals meanwhile."""

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
    """What a plan does to pods: the newest go first, those that start become ready after two minutes. Requests take ten seconds."""

    def __init__(self, model: ScaledModel, replicas: int) -> None:
        self.now = 0.0
        self.model = model
        self.born = {f"r{index}": -1_000.0 for index in range(replicas)}
        self.count = replicas
        self.requests = 0

    def observe(self, minute: Minute, first: bool) -> Observation:
        """The next look, five seconds (and what the clock is wrong by) later."""
        self.now += 5.0 + (minute.skew if first else 0.0)
        before, self.requests = self.requests, minute.requests
        ready = [name for name, born in self.born.items() if self.now - born >= 120.0]
        pending = len(self.born) - len(ready)
        zero, wrong = minute.signals == "zero", minute.signals == "wrong"
        replicas = None
        if minute.signals in ("there", "zero", "wrong"):
            replicas = tuple(
                self._replica(name, before, len(ready), zero, minute.wrong if wrong else None) for name in ready
            )
        gateway = None
        if minute.signals != "missing":
            arrivals = 0.0 if zero else float(minute.requests)
            gateway = GatewaySeen(minute.wrong, 1.0, minute.wrong) if wrong else GatewaySeen(arrivals, arrivals * 900.0)
        pool = PoolSeen(len(self.born), len(ready), pending, replicas=replicas)
        return Observation(self.now, gateway, {"main": pool})

    def _replica(self, name: str, requests: int, ready: int, zero: bool, wrong: float | None) -> ReplicaSeen:
        share = 0.0 if zero else requests / max(1, ready)
        value = share if wrong is None else wrong
        return ReplicaSeen(
            name,
            ReplicaState.READY,
            500.0,
            120.0,
            running=share * 2 if wrong is None else wrong,
            waiting=0.0,
            kv_share=0.0 if zero else 0.3,
            prompt_tokens=value * 900.0,
            generated_tokens=value * 200.0,
            itl_seconds=value * 200.0 * 0.06,
            finished=value,
            first_tokens=value,
            ttft_counts=(value, 0.0, 0.0, 0.0, 0.0),
        )

    def apply(self, plan: Plan) -> None:
        """Make the pods as many as planned."""
        wanted = plan.pools["main"].replicas
        while len(self.born) > wanted:
            self.born.pop(max(self.born, key=lambda name: self.born[name]))
        while len(self.born) < wanted:
            self.count += 1
            self.born[f"r{self.count}"] = self.now


@given(MINUTES, st.integers(0, 3), st.integers(3, 40), st.integers(0, 12))
def test_whatever_is_seen_it_stays_within_bounds_and_what_is_missing_or_just_began_lowers_nothing(
    minutes: list[Minute], minimum: int, maximum: int, replicas: int
) -> None:
    model = model_of(minimum, maximum)
    cluster, core = Cluster(model, min(max(replicas, minimum), maximum)), Core(model)
    watched = 0.0
    for minute in minutes:
        for tick in range(minute.ticks):
            had = len(cluster.born)
            plan = core.step(cluster.observe(minute, tick == 0))
            assert minimum <= plan.pools["main"].replicas <= maximum
            if watched < 120.0 or minute.signals in ("missing", "wrong"):
                assert plan.pools["main"].replicas >= had, plan.pools["main"]
            cluster.apply(plan)
            watched += 5.0


@given(MINUTES, st.integers(0, 60), st.integers(0, 60), st.integers(0, 50), st.integers(0, 50))
def test_more_arrivals_or_more_held_never_make_for_fewer_replicas(
    minutes: list[Minute], less: int, more: int, held: int, held_more: int
) -> None:
    model = model_of(0, 60)
    cluster, core = Cluster(model, 3), Core(model)
    for minute in minutes:
        for tick in range(minute.ticks):
            cluster.apply(core.step(cluster.observe(minute, tick == 0)))
    seen = cluster.observe(Minute(1, 10, "there", 0.0, 0.0), False)

    def planned(arrivals: int, waiting: int) -> int:
        gateway = GatewaySeen(float(arrivals), arrivals * 900.0, float(waiting))
        return decide(core.state, replace(seen, gateway=gateway), model, core.settings)[1].pools["main"].replicas

    low, high = sorted((less, more))
    assert planned(low, held) <= planned(high, held)
    low, high = sorted((held, held_more))
    assert planned(less, low) <= planned(less, high)

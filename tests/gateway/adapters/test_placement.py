"""Placement of adapters: who may serve a request, what is evicted, and why."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.adapters.placement import (
    EVICTION_HORIZON_SECONDS,
    AdapterCandidate,
    ResidentValue,
    choose_eviction,
    eviction_seconds,
    home_count,
    place_adapter,
    rank_homes,
)

SECRET = b"a secret of the test"
IDS = st.integers(0, 30).map("pod-{}/1/0".format)
SECONDS = st.floats(0, 100)
CANDIDATES = st.lists(
    st.builds(AdapterCandidate, IDS, st.booleans(), SECONDS, SECONDS),
    max_size=8,
    unique_by=lambda candidate: candidate.instance_id,
)
RESIDENTS = st.lists(
    st.builds(
        ResidentValue, IDS, st.floats(0, 100), st.floats(0.01, 100), is_busy=st.booleans(), is_declared=st.booleans()
    ),
    max_size=12,
    unique_by=lambda resident: resident.name,
)
WEIGHTS = st.dictionaries(IDS, st.floats(0.1, 10), min_size=1, max_size=16)


@given(CANDIDATES, SECONDS)
def test_request_goes_to_warm_instances_or_to_the_cheapest_cold_one(
    candidates: list[AdapterCandidate], load: float
) -> None:
    placement = place_adapter(candidates, load)
    chosen = [candidate for candidate in candidates if candidate.instance_id in placement.instances]
    costs = [candidate.cost_seconds(load) for candidate in candidates]
    assert placement.reason
    assert bool(chosen) == bool(candidates)
    if chosen:
        assert min(candidate.cost_seconds(load) for candidate in chosen) == min(costs)
    assert {"warm": all, "cold": lambda _: not any(c.is_warm for c in candidates)}.get(placement.rule, lambda _: True)(
        candidate.is_warm for candidate in chosen
    )
    assert len(chosen) == 1 or placement.rule in ("warm", "none")


@given(CANDIDATES, SECONDS)
def test_more_work_at_an_instance_never_attracts_requests(candidates: list[AdapterCandidate], load: float) -> None:
    before = place_adapter(candidates, load)
    for index, candidate in enumerate(candidates):
        busier = replace(candidate, backlog_seconds=candidate.backlog_seconds + 1.0)
        after = place_adapter([*candidates[:index], busier, *candidates[index + 1 :]], load)
        if candidate.instance_id not in before.instances:
            assert candidate.instance_id not in after.instances


@pytest.mark.parametrize(
    ("candidates", "rule", "instances"),
    [
        ([AdapterCandidate("a", True, 0.3), AdapterCandidate("b", False, 0.0)], "warm", ("a",)),
        ([AdapterCandidate("a", True, 0.6), AdapterCandidate("b", False, 0.0)], "spill", ("b",)),
        ([AdapterCandidate("a", False, 0.0, 0.2), AdapterCandidate("b", False, 0.1)], "cold", ("b",)),
        ([AdapterCandidate("a", False, 0.0, inf)], "cold", ("a",)),
        ([], "none", ()),
    ],
)
def test_seconds_decide(candidates: list[AdapterCandidate], rule: str, instances: tuple[str, ...]) -> None:
    placement = place_adapter(candidates, 0.4)
    assert (placement.rule, placement.instances) == (rule, instances)


@given(RESIDENTS)
def test_eviction_loses_least_of_what_is_idle(residents: list[ResidentValue]) -> None:
    eviction = choose_eviction(residents)
    if not residents:
        assert eviction.name is None
        return
    victim = next(resident for resident in residents if resident.name == eviction.name)
    idle = [resident for resident in residents if not resident.is_busy]
    assert victim.is_busy == (not idle) == eviction.must_wait
    assert victim.value == min(resident.value for resident in idle or residents)
    assert eviction.reason


@given(RESIDENTS, st.integers(1, 12))
def test_kept_adapters_are_the_most_valuable_ones(residents: list[ResidentValue], slots: int) -> None:
    """Evicting one by one is optimal: the same adapters stay as if all sets were compared."""
    kept = [replace(resident, is_busy=False) for resident in residents]
    while len(kept) > slots:
        name = choose_eviction(kept).name
        kept = [resident for resident in kept if resident.name != name]
    best = sorted((resident.value for resident in residents), reverse=True)[:slots]
    assert sum(resident.value for resident in kept) == pytest.approx(sum(best))


@given(RESIDENTS, st.integers(1, 12))
def test_free_slot_costs_nothing_and_no_slot_more_than_a_load(residents: list[ResidentValue], slots: int) -> None:
    price = eviction_seconds(residents, slots)
    if len(residents) < slots:
        assert price == 0.0
    elif residents:
        most = max(resident.load_seconds for resident in residents)
        assert 0.0 <= price <= most + EVICTION_HORIZON_SECONDS


def test_no_slot_at_all_has_no_price() -> None:
    assert eviction_seconds([], 0) == inf


@given(WEIGHTS, st.integers(0, 1_000))
def test_homes_move_only_from_an_instance_that_left(weights: dict[str, float], number: int) -> None:
    key = f"default/tiny\0lora-{number}"
    order = rank_homes(key, weights, SECRET)
    assert sorted(order) == sorted(weights)
    for gone in weights:
        rest = {name: weight for name, weight in weights.items() if name != gone}
        assert rank_homes(key, rest, SECRET) == tuple(name for name in order if name != gone)


def test_first_homes_follow_the_weights() -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 5.0}
    first = [rank_homes(f"default/tiny\0lora-{number}", weights, SECRET)[0] for number in range(20_000)]
    for name, weight in weights.items():
        assert first.count(name) / len(first) == pytest.approx(weight / 8.0, abs=0.02)


@given(st.floats(0, 1), st.integers(1, 1_000))
def test_homes_grow_with_the_share_of_requests(share: float, instances: int) -> None:
    count = home_count(share, instances)
    assert min(instances, 2) <= count <= instances
    assert home_count(share / 2, instances) <= count

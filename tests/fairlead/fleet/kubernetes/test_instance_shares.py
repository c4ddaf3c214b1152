"""Shares of a limit, by tables and by their laws."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.fleet.kubernetes.builder import fair_shares
from fairlead_testing.kube.operator_harness import LIMITS, build, external, keyed, model, pod


@pytest.mark.parametrize(
    ("demands", "capacity", "shares"),
    [
        ({}, 4, {}),
        ({"a": 3}, 4, {"a": 3}),
        ({"a": 9}, 4, {"a": 4}),
        ({"a": 1, "b": 9}, 4, {"a": 1, "b": 3}),
        ({"a": 9, "b": 9}, 5, {"a": 2, "b": 3}),
        ({"a": 2, "b": 9, "c": 9}, 8, {"a": 2, "b": 3, "c": 3}),
        ({"a": 1, "b": 1}, 1, {"a": 0, "b": 1}),
    ],
)
def test_small_demands_are_met_and_large_ones_share_the_rest(
    demands: dict[str, int], capacity: int, shares: dict[str, int]
) -> None:
    assert fair_shares(demands, capacity) == shares


@given(st.dictionaries(st.text(max_size=2), st.integers(0, 50), max_size=8), st.integers(0, 100))
def test_nobody_loses_below_the_share_of_another(demands: dict[str, int], capacity: int) -> None:
    shares = fair_shares(demands, capacity)
    assert sum(shares.values()) == min(capacity, sum(demands.values()))
    for key, share in shares.items():
        assert share == demands[key] or share >= max(shares.values()) - 1


def test_namespace_with_far_too_many_ranks_lists_at_most_twice_the_limit() -> None:
    few = replace(LIMITS, instances=4)
    pods = [pod(f"p{number}", notes={"fairlead.io/data-parallel": 8}) for number in range(100)]
    outcome = build([model()], *pods, limits=few)
    assert "4 of 8 are served" in outcome.problems[0]

    selector = {"selector": {"matchLabels": {"app": "engine"}, "port": 8000}}
    selected = keyed(*(pod(f"s{number}", {"app": "engine"}) for number in range(100)))
    models = [external(selector, name=f"m{number}") for number in range(50)]
    outcome = build(models, limits=few, selected_pods={("x", "app=engine"): selected})
    assert "4 of 8 are served" in outcome.problems[0]
    assert len(outcome.excluded) <= 2 * few.instances


def test_served_instances_stay_when_their_namespace_gets_far_too_many() -> None:
    few = replace(LIMITS, instances=2)
    kept = pod("z", namespace="x")
    before = build([model()], kept, limits=few)
    pods = [pod(f"p{number}", notes={"fairlead.io/data-parallel": 8}) for number in range(9)]
    outcome = build([model()], *pods, kept, limits=few, previous=before.fleet)
    assert "u-z/8000/0" in {instance.id for instance in outcome.fleet.instances["x/tiny"]}

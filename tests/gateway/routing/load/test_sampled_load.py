"""The sampled load of a large fleet: exact for this process, at most one rotation old
for others.
"""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.routing.load.inflight import (
    MAX_FULL_SCAN,
    MAX_SAMPLES,
    EndpointLoad,
    InflightTracker,
    SampledLoads,
)
from fairlead_gateway.routing.prefix.prefix_hash import PrefixChain
from fairlead_gateway.routing.request import RouteRequest

MANY = MAX_FULL_SCAN + 4


class Fleet:
    """Instances on which others have work, and a ledger of our own."""

    def __init__(self, others: Mapping[str, float], count: int) -> None:
        self.others = dict(others)
        self.looked: list[str] = []
        self.ledger = InflightTracker(load_override=self._total)
        self.own = [self.ledger.local_load(f"i{at:02}") for at in range(count)]
        self.ledger.retain([item.instance for item in self.own])

    def send(self, instance: str, seconds: float) -> None:
        request = RouteRequest(f"r{len(self.ledger.busy_instances())}", PrefixChain((), (), 0), 1.0)
        self.ledger.add(request, instance, prefill_seconds=seconds, tokens=1.0)

    def _total(self, own: EndpointLoad) -> EndpointLoad:
        self.looked.append(own.instance)
        beside = self.others.get(own.instance, 0.0)
        return EndpointLoad(own.instance, own.inflight, own.waiting, own.backlog_seconds + beside, own.inflight_tokens)


def decide(glimpses: SampledLoads, fleet: Fleet, candidates: int = 4) -> tuple[float, str]:
    glimpses.begin_decision(len(fleet.own))
    mean, least = glimpses.summarize(fleet.own)
    for item in fleet.own[:candidates]:
        glimpses.measure(item)
    glimpses.end_decision(fleet.own)
    return mean, least.instance


def test_a_small_fleet_is_measured_as_a_whole_for_each_decision() -> None:
    fleet = Fleet({"i01": 3.0, "i00": 1.0}, 3)
    glimpses = SampledLoads(fleet.ledger)
    mean, least = decide(glimpses, fleet)
    assert (mean, least) == (4.0 / 3, "i02")
    fleet.others = {"i02": 3.0, "i01": 6.0}
    mean, least = decide(glimpses, fleet)
    assert (mean, least) == (3.0, "i00")


def test_a_large_fleet_measures_candidates_and_one_more_in_rotation() -> None:
    fleet = Fleet({f"i{at:02}": 1.0 for at in range(MANY)}, MANY)
    glimpses = SampledLoads(fleet.ledger)
    means = []
    for _ in range(MANY):
        fleet.looked.clear()
        means.append(decide(glimpses, fleet)[0])
        assert len(fleet.looked) <= MAX_SAMPLES
    assert means[0] == 0.0  # nothing is measured yet
    assert means == sorted(means)
    assert decide(glimpses, fleet)[0] == pytest.approx(1.0)


@given(
    others=st.dictionaries(st.integers(0, MANY - 1), st.floats(0.0, 9.0), max_size=MANY),
    sent=st.lists(st.tuples(st.integers(0, MANY - 1), st.floats(0.01, 5.0)), max_size=30),
)
def test_a_large_static_fleet_is_known_exactly_after_a_full_rotation(
    others: dict[int, float], sent: list[tuple[int, float]]
) -> None:
    fleet = Fleet({f"i{at:02}": seconds for at, seconds in others.items()}, MANY)
    glimpses = SampledLoads(fleet.ledger)
    for _ in range(MANY):
        decide(glimpses, fleet)
    for at, seconds in sent:  # our own part is known at once
        fleet.send(f"i{at:02}", seconds)
    loads = {item.instance: fleet._total(item).backlog_seconds for item in fleet.own}
    mean, least = decide(glimpses, fleet)
    assert mean == pytest.approx(sum(loads.values()) / MANY)
    assert loads[least] == pytest.approx(min(loads.values()))


def test_departed_instances_are_forgotten() -> None:
    fleet = Fleet({f"i{at:02}": 1.0 for at in range(MANY)}, MANY)
    glimpses = SampledLoads(fleet.ledger)
    for _ in range(MANY):
        decide(glimpses, fleet)
    glimpses.retain([])
    assert decide(glimpses, fleet)[0] == 0.0

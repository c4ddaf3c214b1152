"""The benchmark of adapters carries the goals that are checked in; its fleet keeps its rules."""

import pytest

from fairlead_bench.adapters import ENGINES, RULES, SLOTS, AdapterFleet, AdapterTraffic, draw_requests

TRAFFIC = AdapterTraffic(adapters=200, rate=30.0, seconds=30.0)


@pytest.mark.parametrize("rule", RULES)
def test_each_request_is_served_once_by_an_engine_with_its_adapter(rule: str) -> None:
    requests, loads = draw_requests(TRAFFIC, 5)
    fleet = AdapterFleet(ENGINES, SLOTS, loads, RULES[rule](5, loads))
    fleet.run(requests)
    assert all(request.first_at is not None and request.first_at > request.at for request in requests)
    for engine in fleet.engines:
        assert len(engine.slots) <= SLOTS
        assert not engine.waiting
        assert engine.inflight == 0
        assert all(not slot.inflight for slot in engine.slots.values())


def test_first_request_of_an_adapter_waits_for_its_load() -> None:
    requests, loads = draw_requests(TRAFFIC, 6)
    fleet = AdapterFleet(ENGINES, SLOTS, loads, RULES["ours"](6, loads))
    fleet.run(requests)
    seen: set[int] = set()
    for request in requests:
        if request.adapter not in seen:
            seen.add(request.adapter)
            assert request.first_at is not None
            assert request.first_at - request.at >= loads[request.adapter]

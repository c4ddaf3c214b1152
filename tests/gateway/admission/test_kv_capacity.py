"""The plan of KV memory: computed once per change, with the result of a fresh computation."""

import random
from collections.abc import Hashable

import pytest

from fairlead_gateway.admission.kv_capacity import EngineLoad, KvCapacityPlanner, LengthForecast
from fairlead_gateway.routing.prefix.prefix_hash import PrefixChain
from fairlead_gateway.routing.request import RouteRequest


class Forecast(LengthForecast):
    """A forecast of 1,000 tokens for each answer, which counts how often it is used."""

    def __init__(self) -> None:
        self.count = 0

    def expected_remaining(self, length_class: Hashable, prompt_tokens: float, generated: int, now: float) -> float:
        self.count += 1
        return max(1.0, 1_000.0 - generated)


def request_of(name: str, blocks: tuple[int, ...] = ()) -> RouteRequest:
    ends = tuple(400 * (number + 1) for number in range(len(blocks)))
    return RouteRequest(name, PrefixChain(blocks, ends, hash(name)), 500.0)


def engine(kv_tokens: float = 8_000.0, name: str = "e", other_tokens: float = 0.0) -> EngineLoad:
    return EngineLoad(name, 0.0, 0.3, kv_tokens, other_tokens)


def planned(forecast: Forecast, sequences: int) -> KvCapacityPlanner:
    planner = KvCapacityPlanner(forecast)
    for number in range(sequences):
        planner.on_dispatch(request_of(f"running-{number}"), "e", 500.0, None, 0.0)
    forecast.count = 0
    return planner


def missing(planner: KvCapacityPlanner, name: str, load: EngineLoad, now: float) -> float:
    return planner.missing_tokens(load, request_of(name), 500.0, None, now)


def test_each_waiting_request_costs_one_forecast() -> None:
    forecast = Forecast()
    planner = planned(forecast, 5)
    waiting = [request_of(f"waiting-{number}") for number in range(20)]
    tokens = [planner.missing_tokens(engine(), request, 500.0, None, 1.0) for request in waiting]
    assert tokens == pytest.approx([6 * 1_500.0 - 0.99 * 8_000.0] * 20)
    assert forecast.count == 5 + 20


def test_request_has_one_forecast_for_all_instances() -> None:
    forecast = Forecast()
    planner = planned(forecast, 5)
    request = request_of("waiting")
    for number in range(20):
        planner.missing_tokens(engine(name=f"other-{number}", other_tokens=7_000.0), request, 500.0, None, 1.0)
    assert forecast.count == 1


def test_plan_follows_dispatches_first_tokens_ends_and_time() -> None:
    planner = planned(Forecast(), 5)
    before = missing(planner, "a", engine(), 1.0)
    planner.on_dispatch(request_of("more"), "e", 500.0, None, 1.0)
    assert missing(planner, "b", engine(), 1.0) == pytest.approx(before + 1_500.0)
    planner.on_finish("more")
    assert missing(planner, "c", engine(), 1.0) == pytest.approx(before)
    planner.on_first_token("running-0", 1.0)
    first = missing(planner, "d", engine(), 1.0)
    later = missing(planner, "e", engine(), 11.0)  # 500 tokens of that answer are there; it ends before the others
    assert later < first < before


def test_plan_equals_a_fresh_one() -> None:
    draw = random.Random(7)
    forecast = Forecast()
    planner = KvCapacityPlanner(forecast)
    running: dict[str, tuple[RouteRequest, float | None]] = {}
    now = 0.0
    for number in range(400):
        now += draw.choice([0.0, 0.0, 0.05, 1.0])
        action = draw.random()
        if action < 0.4 or not running:
            prefix = draw.choice([(), (1,), (1, 2), (1, 2, 3), (4,)])
            request = request_of(f"r{number}", prefix)
            planner.on_dispatch(request, "e", 500.0, None, now)
            running[request.id] = (request, None)
        elif action < 0.6:
            name = draw.choice(sorted(running))
            request, first_at = running[name]
            planner.on_first_token(name, now)
            running[name] = (request, now if first_at is None else first_at)
        elif action < 0.8:
            name = draw.choice(sorted(running))
            planner.on_finish(name)
            del running[name]
        fresh = KvCapacityPlanner(forecast)
        for request, first_at in running.values():
            fresh.on_dispatch(request, "e", 500.0, None, now)
            if first_at is not None:
                fresh.on_first_token(request.id, first_at)
        asking = request_of(f"asking-{number}", draw.choice([(), (1, 2), (4, 5)]))
        expected = fresh.missing_tokens(engine(), asking, 500.0, None, now)
        assert planner.missing_tokens(engine(), asking, 500.0, None, now) == pytest.approx(expected)

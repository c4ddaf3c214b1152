"""Fallbacks as a graph: the edges of a route, loops, and what random graphs do under failures."""

import random
from collections.abc import Callable, Iterator, Mapping
from math import inf

import pytest

from fairlead.routes.fallback_graph import (
    FallbackChoice,
    FallbackEdge,
    FallbackGraph,
    fallback_edges,
    fallback_weight,
    find_loop,
)
from fairlead.routes.model import FailureKind, Fallback, Route, RouteRule, RouteTarget, visible_route

KINDS = [kind.value for kind in FailureKind]
UNAVAILABLE, NO_CAPACITY = FailureKind.UNAVAILABLE, FailureKind.NO_CAPACITY
GRAPHS = 200


def route(*fallbacks: Fallback, targets: tuple[str, ...] = ("a",)) -> Route:
    return Route("x", "r", tuple(map(RouteTarget, targets)), fallbacks=fallbacks)


def fallback(to: str, after: str | None = None, when: FailureKind = UNAVAILABLE) -> Fallback:
    return Fallback(to, frozenset({when}), after)


def pairs(*fallbacks: Fallback, targets: tuple[str, ...] = ("a",)) -> list[str]:
    return [f"{edge.source}{edge.target}" for edge in fallback_edges(route(*fallbacks, targets=targets))]


@pytest.mark.parametrize(
    ("fallbacks", "targets", "expected"),
    [
        ([fallback("b")], ("a",), ["ab"]),
        ([fallback("b"), fallback("c")], ("a",), ["ab", "ac", "bc"]),
        ([fallback("c")], ("a", "b"), ["ac", "bc"]),
        ([fallback("b")], ("a", "b"), ["ab"]),
        ([fallback("b"), fallback("c", when=NO_CAPACITY), fallback("b", when=NO_CAPACITY)], ("a",), ["ab", "ac", "bc", "ab"]),
        ([fallback("b", "a"), fallback("c", "b")], ("a",), ["ab", "bc"]),
        ([fallback("a")], ("a",), []),
    ],
)  # fmt: skip
def test_fallback_follows_targets_and_the_fallbacks_above(
    fallbacks: list[Fallback], targets: tuple[str, ...], expected: list[str]
) -> None:
    assert pairs(*fallbacks, targets=targets) == expected


def test_targets_of_overrides_fall_back_too() -> None:
    override_route = Route("x", "r", (RouteTarget("a"),), (RouteRule((RouteTarget("b"),)),), fallbacks=(fallback("c"),))
    assert [(edge.source, edge.target) for edge in fallback_edges(override_route)] == [("a", "c"), ("b", "c")]


def test_tenant_falls_back_to_models_that_it_may_use_only() -> None:
    whole = route(fallback("b"), fallback("c"))
    seen = visible_route(whole, lambda key: key != "b")
    assert seen is not None
    assert [visible.to for visible in seen.fallbacks] == ["c"]
    assert visible_route(whole, lambda key: True) is whole


@pytest.mark.parametrize(
    ("edges", "loop"),
    [
        ("ab bc", ""),
        ("ab ac bd cd", ""),
        ("ab ba", "aba"),
        ("ab bc cb", "bcb"),
        ("aa", "aa"),
        ("ab cd de ec", "cdec"),
    ],
)
def test_loop_is_found_and_refused(edges: str, loop: str) -> None:
    parsed_edges = [FallbackEdge(pair[0], pair[1], frozenset()) for pair in edges.split()]
    assert "".join(find_loop(parsed_edges)) == loop
    if loop:
        with pytest.raises(ValueError, match="a loop of fallbacks"):
            FallbackGraph(parsed_edges)
    else:
        FallbackGraph(parsed_edges)


def choose(graph: FallbackGraph, failures: Mapping[str, str], weights: Mapping[str, float]) -> FallbackChoice | None:
    return graph.shortest_path(failures, weights)


def test_lightest_model_that_can_answer_is_next() -> None:
    graph = FallbackGraph(fallback_edges(route(fallback("b"), fallback("c"), fallback("d", "c"))))
    failed = {"a": "Unavailable"}
    assert choose(graph, failed, {"b": 2.0, "c": 1.0}) == FallbackChoice("c", "a", (), 1.0)
    assert choose(graph, failed, {"b": 1.0, "c": 1.0}) == FallbackChoice("b", "a", (), 1.0)
    assert choose(graph, failed, {"d": 1.0}) == FallbackChoice("d", "a", ("c",), 1.0)
    assert choose(graph, failed, {}) is None
    assert choose(graph, {"a": "NoCapacity"}, {"b": 1.0}) is None
    assert choose(graph, {**failed, "c": "NoCapacity"}, {"b": 3.0, "d": 1.0}) == FallbackChoice("b", "a", (), 3.0)


def test_way_on_depends_on_the_kind_of_the_failure() -> None:
    graph = FallbackGraph(fallback_edges(route(fallback("b", "a"), fallback("c", "a", NO_CAPACITY))))
    assert choose(graph, {"a": "Refused"}, {"b": 1.0, "c": 9.0}) is None
    choice = choose(graph, {"a": "NoCapacity"}, {"b": 1.0, "c": 9.0})
    assert choice is not None
    assert choice.model == "c"


def test_weight_is_price_times_latency_over_health() -> None:
    assert fallback_weight(1.0, 1.0, 0.5) == 0.5
    assert fallback_weight(0.5, 3.0, 0.5) == 3.0
    assert fallback_weight(0.0, 1.0, 0.5) == inf


def random_edges(draw: random.Random) -> list[FallbackEdge]:
    """Returns the edges of a graph of 2 to 24 models; loops are left out as documents with them
    are refused.
    """
    names = [f"m{number}" for number in range(draw.randint(2, 24))]
    edges: list[FallbackEdge] = []
    for _ in range(draw.randint(1, 4 * len(names))):
        edge = FallbackEdge(
            draw.choice(names), draw.choice(names), frozenset(draw.sample(KINDS, draw.randint(1, len(KINDS))))
        )
        if not find_loop([*edges, edge]):
            edges.append(edge)
    return edges or [FallbackEdge("m0", "m1", frozenset({"Unavailable"}))]


def single(draw: random.Random, models: list[str], start: str) -> Iterator[set[str]]:
    while True:
        yield {start}


def double(draw: random.Random, models: list[str], start: str) -> Iterator[set[str]]:
    down = {start, draw.choice(models)}
    while True:
        yield down


def cascading(draw: random.Random, models: list[str], start: str) -> Iterator[set[str]]:
    down = {start}
    while True:
        yield set(down)
        down.add(draw.choice(models))


def flapping(draw: random.Random, models: list[str], start: str) -> Iterator[set[str]]:
    yield {start}
    while True:
        yield {model for model in models if draw.random() < 0.5}


@pytest.mark.parametrize("course", [single, double, cascading, flapping])
def test_request_ends_with_an_answer_of_an_allowed_model_or_an_error(
    course: Callable[[random.Random, list[str], str], Iterator[set[str]]],
) -> None:
    answers = errors = 0
    for seed in range(GRAPHS):
        draw = random.Random(f"{course.__name__} {seed}")
        edges = random_edges(draw)
        graph = FallbackGraph(edges)
        models = graph.models()
        start = draw.choice(models)
        down = course(draw, models, start)
        failures: dict[str, str] = {}
        model, seen = start, next(down)
        while True:
            # What the gateway knew when it chose may be out of date when the request arrives.
            if model not in seen and draw.random() < 0.9:
                answers += 1
                break
            assert model not in failures, "a loop"
            failures[model] = "Unavailable" if model in seen else draw.choice(KINDS)
            known = {name: draw.uniform(0.01, 9.0) for name in models if name not in seen}
            path = graph.shortest_path(failures, known)
            reached = reference(edges, failures, known)
            assert (path is None) == (not reached)
            if path is None:
                errors += 1
                break
            assert path.weight == min(reached.values()) == reached[path.model]
            assert path.failed in failures
            assert not set(path.passed) & (failures.keys() | known.keys())
            model, seen = path.model, next(down)
    assert answers + errors == GRAPHS
    assert answers
    assert errors


def reference(edges: list[FallbackEdge], failures: Mapping[str, str], weights: Mapping[str, float]) -> dict[str, float]:
    """Returns the models that may be next with their weights, found by a plain search."""
    waiting = list(failures)
    visited = set(waiting)
    reached: dict[str, float] = {}
    while waiting:
        source = waiting.pop()
        kind = failures.get(source, "Unavailable")
        for edge in edges:
            if edge.source != source or kind not in edge.kinds or edge.target in visited:
                continue
            if edge.target in weights:
                reached[edge.target] = weights[edge.target]
            else:
                visited.add(edge.target)
                waiting.append(edge.target)
    return reached

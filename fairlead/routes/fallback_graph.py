"""Fallbacks of a route as a graph: which model gets a request that another one could not answer.

Models are nodes, and an edge leads from a model to one that may answer in its place after failures
of some kinds. The next model is the end of the shortest path from the models that have failed. A
model that can answer ends a path, at its weight. One that cannot is passed by the edges for
`Unavailable`, without an attempt. Edges form no loop, so one pass over the nodes finds the path.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import Final, NamedTuple

from fairlead.routes.model import FailureKind, Route

_BITS: Final[dict[str, int]] = {kind.value: 1 << number for number, kind in enumerate(FailureKind)}
_UNAVAILABLE: Final = _BITS[FailureKind.UNAVAILABLE.value]


class FallbackEdge(NamedTuple):
    """A way from a model to another one.

    kinds: the failures after which it may be taken.
    """

    source: str
    target: str
    kinds: frozenset[str]


class FallbackChoice(NamedTuple):
    """The model that gets the request next.

    failed: the model whose edge the path begins with.
    passed: models on the path that could not answer, in order.
    weight: of the path.
    """

    model: str
    failed: str
    passed: tuple[str, ...]
    weight: float


def fallback_edges(route: Route) -> list[FallbackEdge]:
    """Returns the edges of a route.

    A fallback without `after` follows every target, and the models of the fallbacks above it.
    """
    targets = list(dict.fromkeys(model for _, model in route.target_paths()))
    ranks = dict.fromkeys(targets, 0)
    for fallback in route.fallbacks:
        ranks.setdefault(fallback.to, len(ranks))
    edges: list[FallbackEdge] = []
    for fallback in route.fallbacks:
        to, kinds = fallback.to, frozenset(kind.value for kind in fallback.when)
        if fallback.after is not None:
            edges.append(FallbackEdge(fallback.after, to, kinds))
            continue
        rank = ranks[to]
        edges += [
            FallbackEdge(model, to, kinds)
            for model, other in ranks.items()
            if other < rank or (rank == 0 and other == 0 and model != to)
        ]
    return edges


def find_loop(edges: Iterable[FallbackEdge]) -> list[str]:
    """Returns the models of a loop in order, the first one again at the end; empty without one."""
    following: dict[str, list[str]] = {}
    for edge in edges:
        following.setdefault(edge.source, []).append(edge.target)
    left: set[str] = set()
    for start in following:
        path: list[str] = []
        # Each entry is a model of the path, with the index of its next edge.
        stack: list[tuple[str, int]] = [(start, 0)] if start not in left else []
        while stack:
            model, number = stack.pop()
            if number == 0:
                if model in path:
                    return [*path[path.index(model) :], model]
                path.append(model)
            targets = following.get(model, [])
            while number < len(targets) and targets[number] in left:
                number += 1
            if number < len(targets):
                stack.append((model, number + 1))
                stack.append((targets[number], 0))
            else:
                path.pop()
                left.add(model)
    return []


class FallbackGraph:
    """The models and edges of a route's fallbacks, without loops.

    Raises ValueError if the edges form a loop.
    """

    __slots__ = ("_following", "_index", "_names", "_order")

    def __init__(self, edges: Sequence[FallbackEdge]) -> None:
        loop = find_loop(edges)
        if loop:
            raise ValueError(f"a loop of fallbacks: {' → '.join(loop)}")
        names = list(dict.fromkeys(name for edge in edges for name in (edge.source, edge.target)))
        index: dict[str, int] = {name: number for number, name in enumerate(names)}
        following: list[list[tuple[int, int]]] = [[] for _ in names]
        for edge in edges:
            kinds = 0
            for kind in edge.kinds:
                kinds |= _BITS[kind]
            following[index[edge.source]].append((index[edge.target], kinds))
        self._names: list[str] = names
        self._index: dict[str, int] = index
        self._following: list[list[tuple[int, int]]] = following
        self._order: list[int] = _reverse_topological_order(following)

    def models(self) -> list[str]:
        return list(self._names)

    def shortest_path(self, failures: Mapping[str, str], weights: Mapping[str, float]) -> FallbackChoice | None:
        """Returns the model of the lowest weight that fallbacks lead to, and the way there.

        None if no path leads to a model that can answer.

        failures: the models that the request has tried, with the kind of each failure.
        weights: of the models that can answer; positive and finite. Of several paths with the same
            weight, the one with fewer models counts, then the first one.
        """
        names, size = self._names, len(self._names)
        kinds: list[int] = [_UNAVAILABLE] * size
        has_failed: list[bool] = [False] * size
        for model, kind in failures.items():
            number = self._index.get(model)
            if number is not None:
                kinds[number], has_failed[number] = _BITS[kind], True
        # Of the best path from each node on: its weight, next node and length. A model that has
        # failed ends no path, so its weight stays infinite.
        best: list[float] = [inf] * size
        hops: list[int] = [-1] * size
        lengths: list[int] = [0] * size
        chosen, lowest = -1, inf
        for node in self._order:
            if not has_failed[node]:
                own = weights.get(names[node])
                if own is not None:
                    best[node] = own
                    continue
            bits, least, hop, length = kinds[node], inf, -1, 0
            for target, taken in self._following[node]:
                weight = best[target]
                if not taken & bits or weight > least or weight == inf:
                    continue
                if weight < least or lengths[target] < length:
                    least, hop, length = weight, target, lengths[target]
            hops[node], lengths[node] = hop, length + 1
            if not has_failed[node]:
                best[node] = least
            elif least < lowest or (hop >= 0 and least == lowest and node < chosen):
                chosen, lowest = node, least
        if chosen < 0:
            return None
        passed: list[str] = []
        node = hops[chosen]
        while hops[node] >= 0:
            passed.append(names[node])
            node = hops[node]
        return FallbackChoice(names[node], names[chosen], tuple(passed), lowest)


def can_reach(route: Route, is_usable: Callable[[str], bool]) -> bool:
    """Returns whether a usable model can answer requests of a route, if no other model does.

    is_usable: is given the key of a model.
    """
    targets = route.models()
    if any(map(is_usable, targets)):
        return True
    graph = FallbackGraph(fallback_edges(route))
    weights = {model: 1.0 for model in graph.models() if is_usable(model)}
    return any(graph.shortest_path({target: FailureKind.UNAVAILABLE.value}, weights) is not None for target in targets)


def fallback_weight(ready_share: float, price: float, seconds: float) -> float:
    """Returns the weight of a model: price × predicted latency ÷ ready share, in seconds.

    ready_share: of its instances, those that can answer, from 0 to 1; 0 gives an infinite weight.
    price: against the cheapest model of the graph; 1 if prices are not known.
    seconds: predicted until the first token.
    """
    return inf if ready_share <= 0.0 else price * seconds / ready_share


def _reverse_topological_order(following: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
    """Returns the nodes in an order in which each comes after all nodes that it leads to."""
    missing = [len(targets) for targets in following]
    sources: list[list[int]] = [[] for _ in following]
    for node, targets in enumerate(following):
        for target, _ in targets:
            sources[target].append(node)
    order = [node for node, count in enumerate(missing) if count == 0]
    for node in order:
        for source in sources[node]:
            missing[source] -= 1
            if missing[source] == 0:
                order.append(source)
    return order

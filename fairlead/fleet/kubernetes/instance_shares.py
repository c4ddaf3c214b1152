"""The shares of namespaces in the limits of the fleet. Pure.

A limit is shared max-min: no namespace loses below its fair share to one that has more. What a
namespace does not need of its share goes to the others.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from fairlead.fleet.kubernetes.spec_cache import ParsedModel
from fairlead.fleet.model import Instance

_Item = TypeVar("_Item", ParsedModel, Instance)


def fair_shares(demands: Mapping[str, int], capacity: int) -> dict[str, int]:
    """Returns the max-min fair share of each key: at most its demand, at most `capacity` in all.

    A remainder that cannot be divided goes to the largest demands, among equals to the last names.
    """
    shares: dict[str, int] = {}
    left = capacity
    smallest_first = sorted(demands, key=lambda key: (demands[key], key))
    for done, key in enumerate(smallest_first):
        shares[key] = min(demands[key], left // (len(smallest_first) - done))
        left -= shares[key]
    return shares


def take_fair_shares(items: Iterable[_Item], capacity: int) -> tuple[list[_Item], list[_Item], dict[str, str]]:
    """Divides `items`, in order of preference, into those within the share of their namespace and
    the others.

    Returns both in the given order, and `SERVED of WANTED` by each namespace that loses some.
    """
    by_namespace: dict[str, int] = {}
    listed = list(items)
    for item in listed:
        by_namespace[item.namespace] = by_namespace.get(item.namespace, 0) + 1
    shares = fair_shares(by_namespace, capacity)
    left = dict(shares)
    taken: list[_Item] = []
    refused: list[_Item] = []
    for item in listed:
        left[item.namespace] -= 1
        (taken if left[item.namespace] >= 0 else refused).append(item)
    losses = {
        namespace: f"{shares[namespace]:,} of {wanted:,}"
        for namespace, wanted in sorted(by_namespace.items())
        if shares[namespace] < wanted
    }
    return taken, refused, losses

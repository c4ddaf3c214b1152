"""Shares that one caller or one namespace cannot take from another: pure code in simulated time."""

from fairlead.limits import Limits
from fairlead_testing.gateway.caller_overload import CallerOverload
from fairlead_testing.kube.fleet_objects import build, external, model, pod

_FLOOD_RATE = 5.0
_STEADY_RATE = 0.3
_SIMULATED_SECONDS = 600.0
_POOLS, _ENDPOINTS_OF_A_POOL = 16, 256
_OTHER_NAMESPACES = 8
_PODS_OF_A_NAMESPACE = 4
GREEDY_ENDPOINTS = _POOLS * _ENDPOINTS_OF_A_POOL


def lost_share_of_steady_caller() -> float:
    """Returns the share of requests that a caller loses who sends less than its share of an engine.

    Another caller sends five times as much as the engine can serve.
    """
    overload = CallerOverload(Limits(), {"flood": _FLOOD_RATE, "steady": _STEADY_RATE})
    overload.run(_SIMULATED_SECONDS)
    return overload.lost_share("steady")


def instances_lost_to_endpoints() -> int:
    """Returns how many instances other namespaces lose to one manifest with 4,096 endpoints.

    The manifest was there first, and took all instances of the fleet. Then the others come.
    """
    pools = [
        {
            "name": f"p{pool}",
            "endpoints": [{"url": f"http://10.1.{pool}.{number}:80"} for number in range(_ENDPOINTS_OF_A_POOL)],
        }
        for pool in range(_POOLS)
    ]
    greedy = external(*pools, name="greedy", namespace="b", created="2025-01-01T00:00:00Z")
    taken = build([greedy]).fleet
    assert len(taken.instances["b/greedy"]) == GREEDY_ENDPOINTS == Limits().instances, "the fleet is not full"
    namespaces = [f"team-{number}" for number in range(_OTHER_NAMESPACES)]
    pods = [
        pod(f"{namespace}-{number}", namespace=namespace)
        for namespace in namespaces
        for number in range(_PODS_OF_A_NAMESPACE)
    ]
    others = [model(namespace=namespace) for namespace in namespaces]
    fleet = build([greedy, *others], *pods, previous=taken).fleet
    served = sum(len(fleet.instances[f"{namespace}/tiny"]) for namespace in namespaces)
    return len(pods) - served

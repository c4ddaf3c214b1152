"""Processor use of pods and their node, as the kubelet counts it: the cost of a rate, and its
cause."""

import json
from collections import Counter
from datetime import datetime
from typing import Any

from e2e.kube.cluster_access.kubectl import Kubectl


def cpu_seconds(kubectl: Kubectl) -> dict[str, tuple[float, float]]:
    """Name of a pod, or ``node`` for everything → (when, processor seconds until then). The kubelet
    looks every ten seconds or so."""
    found: dict[str, tuple[float, float]] = {}
    for node in kubectl.get("nodes")["items"]:
        path = f"/api/v1/nodes/{node['metadata']['name']}/proxy/stats/summary?only_cpu_and_memory=true"
        told = json.loads(kubectl.run("get", "--raw", path))
        for name, cpu in [("node", told["node"]["cpu"]), *((_name(pod), pod.get("cpu", {})) for pod in told["pods"])]:
            if "usageCoreNanoSeconds" in cpu:
                found[name] = (_moment(cpu["time"]), cpu["usageCoreNanoSeconds"] / 1e9)
    return found


def cores_used(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Processors that were busy in between, on average: of the node, and of the pods of each
    Deployment together."""
    taken: Counter[str] = Counter()
    for name in before.keys() & after.keys():
        elapsed = after[name][0] - before[name][0]
        if elapsed > 0:
            taken["-".join(name.split("-")[:2])] += (after[name][1] - before[name][1]) / elapsed
    return {name: round(share, 3) for name, share in taken.most_common(10)}


def _name(pod: dict[str, Any]) -> str:
    return str(pod["podRef"]["name"])


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()

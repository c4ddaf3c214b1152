"""The pods' network on nodes of our own image, which has none.

Each node gets the plugins ``ptp`` and ``host-local``, routes to the others' pods, and the program
that enforces NetworkPolicies.
"""

import json
from dataclasses import dataclass

from e2e.cluster.artifacts import network_policies
from e2e.cluster.nodes.container_engine import ContainerEngine
from e2e.cluster.run_record import RunningCluster

PODS = "10.244.0.0/16"
"""kind's ``podSubnet``."""
READY_SECONDS = 120
_MASQUERADE = f"POSTROUTING -s {PODS} ! -d {PODS} -j MASQUERADE"


@dataclass(frozen=True, slots=True)
class _Node:
    name: str
    pods: str
    address: str


def install(cluster: RunningCluster, engine: ContainerEngine) -> None:
    """Until all nodes are Ready and policies are enforced on each."""
    connect(cluster, engine)
    cluster.apply(*network_policies.manifests())
    patience = f"--timeout={READY_SECONDS}s"
    cluster.command("kubectl", "wait", "--for=condition=Ready", "nodes", "--all", patience)
    cluster.command("kubectl", "-n", "kube-system", "rollout", "status", "daemonset/kube-network-policies", patience)


def connect(cluster: RunningCluster, engine: ContainerEngine) -> None:
    """Gives running nodes their plugins' settings and routes. A node that was restarted has another
    address and no routes, so that this is called again."""
    nodes = _nodes(cluster, engine)
    for node in nodes:
        script = ["mkdir -p /etc/cni/net.d", "cat > /etc/cni/net.d/10-pods.conflist"]
        script += [f"ip route replace {other.pods} via {other.address}" for other in nodes if other is not node]
        script += [f"iptables -t nat -C {_MASQUERADE} 2>/dev/null || iptables -t nat -A {_MASQUERADE}"]
        if engine.is_running(node.name):
            engine.shell(node.name, "\n".join(["set -e", *script]), given=json.dumps(_plugins(node)))


def _nodes(cluster: RunningCluster, engine: ContainerEngine) -> list[_Node]:
    """All nodes with their addresses of now; the API server may know earlier ones."""
    listed = json.loads(cluster.output("kubectl", "get", "nodes", "--output=json"))["items"]
    pods = {node["metadata"]["name"]: node["spec"]["podCIDR"] for node in listed}
    return [_Node(name, subnet, engine.address(name)) for name, subnet in pods.items()]


def _plugins(node: _Node) -> dict[str, object]:
    addresses = {
        "type": "host-local",
        "dataDir": "/run/cni-ipam-state",
        "routes": [{"dst": "0.0.0.0/0"}],
        "ranges": [[{"subnet": node.pods}]],
    }
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": addresses},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }

"""The NetworkPolicy of a pool: who may speak with its engines. Their side channels know no authentication."""

from fairlead.engines.containers import EngineContainer
from fairlead.fleet.labels import MODEL_LABEL
from fairlead.kube.resources import NETWORK_POLICIES, Manifest
from fairlead_operator.render.context import AllowedPeer
from fairlead_operator.render.names import selector_labels
from fairlead_operator.render.pool_context import PoolContext


def network_policy(pool: PoolContext, container: EngineContainer, peers: tuple[AllowedPeer, ...]) -> Manifest:
    """Pods of the same model reach every port; gateways reach HTTP, events and the bootstrap server. Outwards all is open.

    The kubelet's probes come from the node, which policies do not concern.
    """
    selector = {"matchLabels": selector_labels(pool.model, pool.pool)}
    inside = {"from": [{"podSelector": {"matchLabels": {MODEL_LABEL: pool.model.metadata.name}}}]}
    rules: list[Manifest] = [inside]
    if peers:
        rules.append({"from": [peer.network_policy_peer() for peer in peers], "ports": _ports(pool, container)})
    return pool.make_child(NETWORK_POLICIES, {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": rules})


def _ports(pool: PoolContext, container: EngineContainer) -> list[Manifest]:
    notes, ranks = container.pod_info, pool.pool.parallelism.data
    found: list[Manifest] = [{"protocol": "TCP", "port": notes.port}]
    for first in (notes.kv_events_port, notes.kv_replay_port):
        if first is not None:
            found.append({"protocol": "TCP", "port": first, "endPort": first + ranks - 1})
    if notes.bootstrap_port is not None and notes.bootstrap_port != notes.port:
        found.append({"protocol": "TCP", "port": notes.bootstrap_port})
    return found

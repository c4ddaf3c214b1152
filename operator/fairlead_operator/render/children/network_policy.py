"""The NetworkPolicy of a pool.

Why: the ports of engines for KV events, replays and bootstrap have no authentication.
"""

from fairlead.adapters.download import DOWNLOADER_PORT
from fairlead.engines.containers import EngineContainer
from fairlead.fleet.labels import MODEL_LABEL
from fairlead.kube.resources import NETWORK_POLICIES, Manifest
from fairlead_operator.render.context import AllowedPeer
from fairlead_operator.render.names import selector_labels
from fairlead_operator.render.pool_context import PoolContext


def network_policy(pool: PoolContext, container: EngineContainer, peers: tuple[AllowedPeer, ...]) -> Manifest:
    """Returns the policy: pods of the model reach every port; gateways reach HTTP, events,
    bootstrap and the downloader of adapters.

    Egress is open. Policies do not affect the kubelet's probes, which come from the node.
    """
    selector = {"matchLabels": selector_labels(pool.model, pool.pool)}
    same_model = {"from": [{"podSelector": {"matchLabels": {MODEL_LABEL: pool.model.metadata.name}}}]}
    rules: list[Manifest] = [same_model]
    if peers:
        rules.append({"from": [peer.network_policy_peer() for peer in peers], "ports": _ports(pool, container)})
    return pool.make_child(NETWORK_POLICIES, {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": rules})


def _ports(pool: PoolContext, container: EngineContainer) -> list[Manifest]:
    notes, ranks = container.pod_info, pool.pool.parallelism.data
    ports: list[Manifest] = [{"protocol": "TCP", "port": notes.port}]
    for first_port in (notes.kv_events_port, notes.kv_replay_port):
        if first_port is not None:
            ports.append({"protocol": "TCP", "port": first_port, "endPort": first_port + ranks - 1})
    if notes.bootstrap_port is not None and notes.bootstrap_port != notes.port:
        ports.append({"protocol": "TCP", "port": notes.bootstrap_port})
    adapters = pool.model.spec.adapters
    if adapters is not None and adapters.download is not None and pool.pool.parallelism.nodes == 1:
        ports.append({"protocol": "TCP", "port": DOWNLOADER_PORT})
    return ports

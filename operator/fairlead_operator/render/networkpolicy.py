"""The NetworkPolicy of a pool: who may speak with its engines. Their side channels know no authentication."""

from fairlead.cluster_labels import MODEL
from fairlead.engines.pods import EngineContainer
from fairlead.kube.resource import NETWORK_POLICIES, Manifest
from fairlead_operator.render.children import Plan
from fairlead_operator.render.facts import Peer
from fairlead_operator.render.names import selector_labels


def network_policy(plan: Plan, made: EngineContainer, peers: tuple[Peer, ...]) -> Manifest:
    """Pods of the same model reach every port; gateways reach HTTP, events and the bootstrap server. Outwards all is open.

    The kubelet's probes come from the node, which policies do not concern.
    """
    selector = {"matchLabels": selector_labels(plan.model, plan.pool)}
    inside = {"from": [{"podSelector": {"matchLabels": {MODEL: plan.model.metadata.name}}}]}
    rules: list[Manifest] = [inside]
    if peers:
        rules.append({"from": [peer.rule() for peer in peers], "ports": _ports(plan, made)})
    return plan.child(NETWORK_POLICIES, {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": rules})


def _ports(plan: Plan, made: EngineContainer) -> list[Manifest]:
    notes, ranks = made.notes, plan.pool.parallelism.data
    found: list[Manifest] = [{"protocol": "TCP", "port": notes.port}]
    for first in (notes.kv_events_port, notes.kv_replay_port):
        if first is not None:
            found.append({"protocol": "TCP", "port": first, "endPort": first + ranks - 1})
    if notes.bootstrap_port is not None and notes.bootstrap_port != notes.port:
        found.append({"protocol": "TCP", "port": notes.bootstrap_port})
    return found

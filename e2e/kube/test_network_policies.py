"""Connections between pods: every kind of pod to every port of Fairlead and of its engines.

The pairs that a policy denies must time out, on a network that enforces policies. All others must
connect, or Fairlead would not work.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.run_record import RunRecord
from e2e.kube.cluster_access.kubectl import Kubectl, eventually, run_fairlead, temporary_namespace
from e2e.kube.workloads.client_pods import ClientPod
from e2e.kube.workloads.helm_release import TEAM_LABEL, HelmRelease
from e2e.kube.workloads.manifests import model, paced_engine
from e2e.kube.workloads.model_deployments import DeployedModel

pytestmark = [pytest.mark.lane("changes", position=60)]

_CONNECT = """
import concurrent.futures, json, socket, sys
def connects(target):
    try:
        socket.create_connection(target, timeout=3).close()
    except OSError:
        return False
    return True
targets = json.loads(TARGETS)
with concurrent.futures.ThreadPoolExecutor(len(targets)) as beside:
    print(json.dumps(list(beside.map(connects, map(tuple, targets)))))
"""
_SERVED = "gateway:8080"
_MANAGED = frozenset({"gateway:8081", "indexer:8080", "operator:8080", "autoscaler:8080"})
_STORE = "redis:6379"
_ENGINE = "engine:8000"
REACHES: Mapping[str, frozenset[str]] = {
    "a stranger": frozenset({_SERVED}),
    "a scraper": frozenset({_SERVED, *_MANAGED}),
    "an engine of the model": frozenset({_SERVED, _ENGINE}),
    "an engine of another model": frozenset({_SERVED}),
    "gateway": frozenset({_SERVED, *_MANAGED, _STORE, _ENGINE}),
    "indexer": frozenset({_SERVED, *_MANAGED, _STORE, _ENGINE}),
    "autoscaler": frozenset({_SERVED, *_MANAGED, _ENGINE}),
    "operator": frozenset({_SERVED, *_MANAGED}),
}
"""Pod → ports that it reaches. The names of components are those of their pods."""


@dataclass(frozen=True, slots=True)
class NetworkPeer:
    """A pod from which connections are tried."""

    here: Kubectl
    pod: str

    def connects(self, targets: Sequence[tuple[str, int]]) -> list[bool]:
        """Returns for each address and port whether a connection is accepted within 3 s."""
        said = self.here.python(self.pod, _CONNECT.replace("TARGETS", repr(json.dumps(targets))))
        found: list[bool] = json.loads(said)
        return found


@pytest.fixture
def scraped(installation: HelmRelease, kubectl: Kubectl) -> Iterator[HelmRelease]:
    """An installation of which pods in namespaces of one label may read metrics, on a network that
    enforces policies."""
    if RunRecord(Path(kubectl.environ["KUBECONFIG"]).parent).get("level") == "full":
        pytest.skip("the network of our own cluster enforces no policies: `make e2e PROVIDER=kind` does")
    installation.upgrade(networkPolicies={"metricsFrom": [{"namespaceSelector": {"matchLabels": TEAM_LABEL}}]})
    yield installation
    installation.upgrade()


@pytest.fixture
def monitoring(kubectl: Kubectl) -> Iterator[Kubectl]:
    """A namespace with the label of scrapers."""
    ((label, value),) = TEAM_LABEL.items()
    with temporary_namespace(kubectl) as inside:
        kubectl.run("label", "namespace", inside.namespace, f"{label}={value}")
        yield inside


def test_pods_reach_the_ports_that_policies_allow_and_no_others(
    here: Kubectl, scraped: HelmRelease, monitoring: Kubectl
) -> None:
    here.apply(paced_engine(), model("guarded"), model("other"))
    stranger, scraper = ClientPod(here, scraped).start(), ClientPod(monitoring, scraped).start()
    engine, other = (_only_pod(DeployedModel(here, name)) for name in ("guarded", "other"))
    components = {name: next(iter(scraped.pods(name).values())) for name in ("gateway", "indexer", "operator")}
    components |= {name: next(iter(scraped.pods(name).values())) for name in ("autoscaler", "redis")}
    peers = {
        "a stranger": NetworkPeer(here, stranger.name),
        "a scraper": NetworkPeer(monitoring, scraper.name),
        "an engine of the model": NetworkPeer(here, engine["metadata"]["name"]),
        "an engine of another model": NetworkPeer(here, other["metadata"]["name"]),
    }
    peers |= {
        name: NetworkPeer(scraped.here, components[name]["metadata"]["name"]) for name in REACHES if name in components
    }
    places = {name: pod["status"]["podIP"] for name, pod in components.items()} | {"engine": engine["status"]["podIP"]}
    ports = [_SERVED, *sorted(_MANAGED), _STORE, _ENGINE]
    targets = [(places[port.partition(":")[0]], int(port.partition(":")[2])) for port in ports]

    def reached() -> dict[str, frozenset[str]]:
        return {
            name: frozenset(port for port, is_open in zip(ports, peer.connects(targets), strict=True) if is_open)
            for name, peer in peers.items()
        }

    found: dict[str, frozenset[str]] = {}

    def is_as_documented() -> bool:
        found.update(reached())
        return found == REACHES

    # A policy that was just changed is enforced a moment later.
    eventually("pods reach what they may", is_as_documented, seconds=40, describe=lambda: str(_differences(found)))


def test_commands_read_every_pod_behind_its_policies(here: Kubectl, scraped: HelmRelease) -> None:
    here.apply(paced_engine(), model("read", replicas=2))
    DeployedModel(here, "read").wait_until_settled(pods=2)
    client = ClientPod(here, scraped).start()
    client.first_token(f"{here.namespace}/read")
    _, shown = run_fairlead(here, "status", f"{here.namespace}/read", "--output", "json", codes=(0, 1))
    (status,) = _as_list(json.loads(shown))
    assert status["signals_problem"] is None
    assert [len(one["signals"]) for pool in status["pools"] for one in pool["instances"]] == [1, 1]
    _, checks = run_fairlead(here, "check", "--output", "json", codes=(0, 1))
    assert json.loads(checks)["counts"]["unknown"] == 0, checks


def _as_list(document: Any) -> list[Any]:
    return document if isinstance(document, list) else [document]


def _only_pod(deployed: DeployedModel) -> dict[str, dict[str, str]]:
    (found,) = deployed.wait_until_settled(pods=1).values()
    return found


def _differences(found: Mapping[str, frozenset[str]]) -> dict[str, dict[str, list[str]]]:
    """Returns for each pod the ports that it reaches and should not, and the other way round."""
    return {
        name: {"too many": sorted(reached - REACHES[name]), "missing": sorted(REACHES[name] - reached)}
        for name, reached in found.items()
        if reached != REACHES[name]
    }

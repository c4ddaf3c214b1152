"""Nodes and control planes that fail under streams, of which none may break.

A worker is switched off, another time drained. The control plane is off for a minute. Gateways are
replaced while an engine is killed.

Gateways and clients are on the first worker, since a stream ends with the gateway that carries it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.cluster.nodes import kind_cluster
from e2e.cluster.run_record import RunningCluster, RunRecord
from e2e.kube.cluster_access.kubectl import Kubectl, eventually, run_fairlead
from e2e.kube.workloads.client_pods import ClientPod, StreamSession, record_result, run_streams
from e2e.kube.workloads.helm_release import GATEWAY, HelmRelease
from e2e.kube.workloads.manifests import PACED_ENGINE, model, paced_engine
from e2e.kube.workloads.model_deployments import DeployedModel
from fairlead_testing.reports import ReportLine

pytestmark = [pytest.mark.lane("changes", position=70), pytest.mark.timeout(600, func_only=True)]

RATE, TOKENS = 2.0, 100
"""Streams a second, and tokens of each: at 20 a second, ten are open at a time."""
CONTROL_PLANE_SECONDS = 60.0
NAME = "kept"


@dataclass(frozen=True, slots=True)
class KindNodes:
    """The nodes of a cluster that kind made for the tests."""

    cluster: RunningCluster

    @property
    def workers(self) -> tuple[str, str]:
        return kind_cluster.WORKERS

    @contextmanager
    def off(self, node: str) -> Iterator[None]:
        """Has a node switched off during the block."""
        kind_cluster.stop_node(node)
        try:
            yield
        finally:
            kind_cluster.start_node(self.cluster, node)


@pytest.fixture
def nodes(kubectl: Kubectl) -> KindNodes:
    run = Path(kubectl.environ["KUBECONFIG"]).parent
    record = RunRecord(run)
    if record.get("level") != "kind" or run.name != "kind-cluster":
        pytest.skip("nodes are switched off on the tests' own cluster of kind's: `make e2e PROVIDER=kind`")
    return KindNodes(RunningCluster(run, Path(record.get("binaries"))))


@pytest.fixture
def pinned(installation: HelmRelease, nodes: KindNodes) -> Iterator[HelmRelease]:
    """An installation whose gateways are on the first worker."""
    place = {"nodeSelector": {"kubernetes.io/hostname": nodes.workers[0]}}
    with installation.settings(gateway=place):
        yield installation


@pytest.fixture
def four_engines(here: Kubectl) -> DeployedModel:
    pool = {"acceleratorClassName": PACED_ENGINE, "minReplicas": 4}
    here.apply(paced_engine(), model(NAME, pools=[pool]))
    return DeployedModel(here, NAME)


def test_no_stream_breaks_when_a_node_is_switched_off(
    here: Kubectl, pinned: HelmRelease, nodes: KindNodes, four_engines: DeployedModel
) -> None:
    gone = nodes.workers[1]
    client = _client(here, pinned, nodes)
    there = [pod for pod in four_engines.wait_until_settled(pods=4).values() if pod["spec"]["nodeName"] == gone]
    assert there
    with _streams(client, here) as streams, nodes.off(gone):
        _pass_seconds(streams, 20)
        streams.begin_no_more()
        name = there[0]["metadata"]["name"]
        eventually(f"{name} is said to be on a node that is not ready", lambda: _is_lost(here, name), seconds=120)
    _record("a node switched off", streams)
    four_engines.wait_until_settled(pods=4, seconds=240)


def test_no_stream_breaks_when_a_node_is_drained(
    here: Kubectl, installation: HelmRelease, nodes: KindNodes, four_engines: DeployedModel
) -> None:
    client = _client(here, installation, nodes)
    four_engines.wait_until_settled(pods=4)
    drained = nodes.workers[1]
    try:
        with _streams(client, here) as streams:
            here.run("drain", drained, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s")
            _pass_seconds(streams, 5)
    finally:
        here.run("uncordon", drained)
    _record("a node drained", streams)
    settled = four_engines.wait_until_settled(pods=4, seconds=240)
    assert drained not in {pod["spec"]["nodeName"] for pod in settled.values()}


def test_no_stream_breaks_without_a_control_plane(
    here: Kubectl, installation: HelmRelease, nodes: KindNodes, four_engines: DeployedModel
) -> None:
    client = _client(here, installation, nodes)
    four_engines.wait_until_settled(pods=4)
    dns = here.in_namespace("kube-system")  # kind starts both of its pods before there are workers
    dns.run("rollout", "restart", "deployment/coredns")
    dns.wait_for_rollout("deployment/coredns")
    end = run_streams(client, _model(here), rate=RATE, tokens=TOKENS, seconds=CONTROL_PLANE_SECONDS + 30)
    with nodes.off(kind_cluster.CONTROL_PLANE):
        time.sleep(CONTROL_PLANE_SECONDS)
    figures = end()
    broken = {outcome: count for outcome, count in figures["outcomes"].items() if outcome != "complete"}
    line = ReportLine("0 broken streams", sum(broken.values()), not broken)
    record_result("the control plane off for a minute", [line], into="e2e-kind", **figures)
    assert broken == {}
    assert figures["streams"] >= RATE * CONTROL_PLANE_SECONDS


def test_no_stream_breaks_when_gateways_are_replaced_and_an_engine_is_killed(
    here: Kubectl, installation: HelmRelease, four_engines: DeployedModel
) -> None:
    client = ClientPod(here, installation).start()
    client.first_token(_model(here))
    victim = next(iter(four_engines.wait_until_settled(pods=4).values()))
    before = set(installation.pods("gateway"))
    with _streams(client, here) as streams:
        installation.here.run("rollout", "restart", f"deployment/{GATEWAY}")
        here.run("delete", "pod", victim["metadata"]["name"], "--force", "--grace-period=0")
        installation.here.wait_for_rollout(f"deployment/{GATEWAY}", seconds=120)
        installation.wait_until_replaced("gateway", before)
        _pass_seconds(streams, 5)
    _record("gateways replaced, an engine killed", streams)
    four_engines.wait_until_settled(pods=4)
    placed = [pod["spec"]["nodeName"] for pod in installation.pods("gateway").values()]
    workers = {node["metadata"]["name"] for node in here.get("nodes")["items"] if not node["spec"].get("taints")}
    assert len(set(placed)) == min(len(placed), len(workers)), placed


def _model(here: Kubectl) -> str:
    return f"{here.namespace}/{NAME}"


def _client(here: Kubectl, release: HelmRelease, nodes: KindNodes) -> ClientPod:
    """A client on the first worker, once the model answers it."""
    client = ClientPod(here, release).start(nodes.workers[0])
    client.first_token(_model(here))
    return client


@contextmanager
def _streams(client: ClientPod, here: Kubectl) -> Iterator[StreamSession]:
    """Streams of which as many are open as there will be."""
    with StreamSession(client, _model(here), rate=RATE, tokens=TOKENS) as streams:
        _until(streams, lambda: streams.seconds[-1]["open"] >= RATE * TOKENS / 20 * 0.8)
        yield streams


def _pass_seconds(streams: StreamSession, seconds: int) -> None:
    wanted = len(streams.seconds) + seconds
    _until(streams, lambda: len(streams.seconds) >= wanted)


def _until(streams: StreamSession, holds: Callable[[], bool]) -> None:
    eventually("streams run", lambda: bool(streams.seconds) and holds(), seconds=90)


def _is_lost(here: Kubectl, pod: str) -> bool:
    _, shown = run_fairlead(here, "status", _model(here), codes=(0, 1))
    return any(pod in line and "NodeNotReady" in line for line in shown.splitlines())


def _record(part: str, streams: StreamSession) -> None:
    figures = {name: streams.end[name] for name in ("streams", "outcomes", "longest_gap_seconds")}
    broken = len(streams.failures)
    record_result(part, [ReportLine("0 broken streams", broken, not broken)], into="e2e-kind", **figures)
    assert streams.failures == []
    assert streams.end["outcomes"] == {"complete": streams.end["streams"]}

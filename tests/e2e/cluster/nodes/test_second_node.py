"""Two nodes of a machine share the bridge, and nothing that only one of them may have."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from e2e.cluster.nodes.node import NODES, SECOND_TAINT, ClusterNode
from e2e.cluster.run_record import RunRecord


@pytest.fixture
def nodes(tmp_path: Path) -> list[ClusterNode]:
    return [ClusterNode(RunRecord(tmp_path), tmp_path, number) for number in range(len(NODES))]


def test_pods_of_two_nodes_have_no_address_in_common(nodes: list[ClusterNode]) -> None:
    plugins = [node.network_config()["plugins"][0] for node in nodes]
    ranges = [plugin["ipam"]["ranges"][0][0] for plugin in plugins]
    (first, last), (next_first, next_last) = (
        (ip_address(pods["rangeStart"]), ip_address(pods["rangeEnd"])) for pods in ranges
    )
    assert first < last < next_first < next_last
    assert plugins[0]["bridge"] == plugins[1]["bridge"]
    assert plugins[0]["ipam"]["dataDir"] != plugins[1]["ipam"]["dataDir"]


@pytest.mark.parametrize(
    "name", ["port", "healthzPort", "cgroupRoot", "containerRuntimeEndpoint", "podLogsDir", "volumePluginDir"]
)
def test_each_kubelet_has_its_own(nodes: list[ClusterNode], name: str) -> None:
    first, second = (node.kubelet_config()[name] for node in nodes)
    assert first != second


def test_only_the_second_node_keeps_pods_out(nodes: list[ClusterNode]) -> None:
    first, second = (node.kubelet_config()["registerWithTaints"] for node in nodes)
    assert first == []
    assert second == [{"key": SECOND_TAINT, "effect": "NoSchedule"}]


def test_processes_and_credentials_of_two_nodes_have_different_names(nodes: list[ClusterNode]) -> None:
    assert [node.process("kubelet") for node in nodes] == ["kubelet", "kubelet-second"]
    assert nodes[0].kubeconfig != nodes[1].kubeconfig


def test_a_node_that_comes_again_gives_its_pods_other_addresses(nodes: list[ClusterNode]) -> None:
    node = nodes[1]
    leases = Path(node.network_config()["plugins"][0]["ipam"]["dataDir"]) / "fairlead"
    leases.mkdir(parents=True)
    for name in ("10.244.0.200", "10.244.0.201", "last_reserved_ip.0", "lock"):
        (leases / name).touch()
    node.folder.mkdir()
    node.remove()
    assert not node.folder.exists()
    assert {path.name for path in leases.iterdir()} == {"last_reserved_ip.0", "lock"}

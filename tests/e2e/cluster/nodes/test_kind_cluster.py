"""Clusters of kind's: their settings, podman's runtime, and images for a user's own one."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from e2e.cluster import levels
from e2e.cluster.artifacts import network_policies
from e2e.cluster.nodes import kind_cluster, oci_runtime
from e2e.cluster.nodes.container_engine import ContainerEngine
from e2e.cluster.run_record import ClusterError

KUBECONFIG = "apiVersion: v1\nkind: Config\ncurrent-context: kind-mine\n"

LIMITED = {
    "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1, "soft": 1}],
    "oomScoreAdj": -999,
    "capabilities": {"bounding": ["CAP_KILL", "CAP_SYS_RESOURCE"], "ambient": None},
    "args": ["sh"],
}
RELAXED = {"capabilities": {"bounding": ["CAP_KILL"], "ambient": None}, "args": ["sh"]}


@pytest.mark.parametrize("is_bundle", [True, False])
def test_what_needs_a_capability_is_taken_out_of_what_podman_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_bundle: bool
) -> None:
    place = tmp_path / "config.json"
    place.write_text(json.dumps({"process": LIMITED, "root": {}} if is_bundle else LIMITED))
    called: list[list[str]] = []
    monkeypatch.setattr(oci_runtime.os, "execvp", lambda _, words: called.append(words))
    words = ["create", "--bundle", str(tmp_path)] if is_bundle else ["exec", "--process", str(place), "id"]
    oci_runtime.main(words)
    assert json.loads(place.read_text()) == ({"process": RELAXED, "root": {}} if is_bundle else RELAXED)
    assert called == [["runc", *words]]


@pytest.mark.parametrize("program", ["docker", "podman"])
def test_only_podmans_nodes_have_our_network(program: str) -> None:
    config = kind_cluster.cluster_config(ContainerEngine(program), has_new_cgroups=True)
    assert [node["role"] for node in config["nodes"]] == ["control-plane", "worker", "worker"]
    assert ("networking" in config) == (program == "podman")
    assert "kubeadmConfigPatches" not in config


def test_kubelets_run_on_control_groups_of_version_1_where_there_are_no_others() -> None:
    config = kind_cluster.cluster_config(ContainerEngine("docker"), has_new_cgroups=False)
    (patch,) = config["kubeadmConfigPatches"]
    assert yaml.safe_load(patch)["failCgroupV1"] is False


def test_a_provider_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(levels.PROVIDER, "minikube")
    with pytest.raises(ClusterError, match="no provider 'minikube': kind, or nothing"):
        levels.level_of_tests()


def test_sources_that_make_their_queue_in_another_way_are_not_built() -> None:
    with pytest.raises(ClusterError, match="in another way"):
        network_policies.with_our_queue("queue := &expr.Queue{Num: 1}\n")
    changed = network_policies.with_our_queue(
        "\tqueue := &expr.Queue{Num: uint16(c.config.QueueID)}\n\tif c.config.FailOpen {\n\t\tqueue.Flag = 1\n\t}\n\tx()\n"
    )
    assert changed == "\tqueue := xtQueue(uint16(c.config.QueueID), c.config.FailOpen)\n\tx()\n"


@pytest.mark.skipif(shutil.which("gofmt") is None, reason="there is no Go")
def test_our_queue_is_formatted_as_go() -> None:
    source = Path(network_policies.__file__).with_name("policies") / "xt_queue.go"
    assert subprocess.run(["gofmt", "-l", str(source)], check=True, capture_output=True, text=True).stdout == ""


@pytest.mark.parametrize(("crds", "is_installed"), [("", False), (levels.__name__, False), ("LWS", True)])
def test_own_cluster_gets_images_and_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crds: str, is_installed: bool
) -> None:
    known = "customresourcedefinition.apiextensions.k8s.io/leaderworkersets.leaderworkerset.x-k8s.io"
    programs, calls = tmp_path / "programs", tmp_path / "calls"
    programs.mkdir()
    for name in ("docker", "kind", "kubectl", "helm"):
        answer = known if crds == "LWS" else crds
        script = f'#!/bin/sh\necho "{name} $KUBECONFIG $*" >> {calls}\n[ "{name} $2" = "kubectl crds" ] && echo "{answer}"\nexit 0\n'
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(kind_cluster, "path_of", lambda program: programs / program.name)
    monkeypatch.setattr(levels, "prepare", lambda level: (programs, []))
    monkeypatch.setattr(kind_cluster, "write_archive", lambda path, images: path.write_bytes(b""))
    cluster = levels.equip_kind("kind-mine", KUBECONFIG, tmp_path / "run")
    lines = calls.read_text().splitlines()
    assert any("load image-archive" in line and line.endswith("--name mine") for line in lines)
    assert any("helm" in line and "install lws" in line for line in lines) is not is_installed
    assert cluster.kubeconfig.read_text() == KUBECONFIG
    assert cluster.kubeconfig.stat().st_mode & 0o077 == 0
    assert f"kubectl {cluster.kubeconfig} get crds --output=name" in lines

"""A user's own cluster of kind's is given what the tests need, and nothing twice."""

from pathlib import Path

import pytest

from e2e.cluster import levels
from e2e.cluster.nodes import kind_cluster

KUBECONFIG = "apiVersion: v1\nkind: Config\ncurrent-context: kind-mine\n"


@pytest.mark.parametrize(("crds", "is_installed"), [("", False), (levels.__name__, False), ("LWS", True)])
def test_own_cluster_gets_images_and_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crds: str, is_installed: bool
) -> None:
    known = "customresourcedefinition.apiextensions.k8s.io/leaderworkersets.leaderworkerset.x-k8s.io"
    programs, calls = tmp_path / "programs", tmp_path / "calls"
    programs.mkdir()
    for name in ("kind", "kubectl", "helm"):
        answer = known if crds == "LWS" else crds
        script = f'#!/bin/sh\necho "{name} $KUBECONFIG $*" >> {calls}\n[ "{name} $2" = "kubectl crds" ] && echo "{answer}"\nexit 0\n'
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(levels, "prepare", lambda level: (programs, []))
    monkeypatch.setattr(kind_cluster, "write_archive", lambda path, images: path.write_bytes(b""))
    cluster = levels.equip_kind("kind-mine", KUBECONFIG, tmp_path / "run")
    lines = calls.read_text().splitlines()
    assert any("load image-archive" in line and line.endswith("--name mine") for line in lines)
    assert any("helm" in line and "install lws" in line for line in lines) is not is_installed
    assert cluster.kubeconfig.read_text() == KUBECONFIG
    assert cluster.kubeconfig.stat().st_mode & 0o077 == 0
    assert f"kubectl {cluster.kubeconfig} get crds --output=name" in lines

"""Built artifacts are named by their inputs."""

import re
from pathlib import Path

import pytest

from e2e.cluster.artifacts import chart_tools, go_builds, pinned_versions
from e2e.cluster.run_record import ClusterError

MODULES = {name: pinned_versions.HERE / name / "go.mod" for name in ("kubernetes", "lws", "prometheus")}
PROGRAMS = (*pinned_versions.LEVELS["full"], pinned_versions.METRICS, pinned_versions.PROMTOOL)


def test_the_versions_that_are_named_are_those_of_the_modules() -> None:
    kubernetes, lws, prometheus = (path.read_text() for path in MODULES.values())
    assert f"k8s.io/kubernetes {pinned_versions.KUBERNETES}" in kubernetes
    assert f"helm.sh/helm/v4 {pinned_versions.HELM}" in kubernetes
    assert f"sigs.k8s.io/lws {pinned_versions.LWS}" in lws
    assert f"github.com/prometheus/prometheus {pinned_versions.PROMETHEUS}" in prometheus


def test_openapi_sources_are_pinned_and_one_release_is_that_of_the_cluster() -> None:
    sums = (pinned_versions.HERE / "kubernetes" / "go.sum").read_text()
    assert (
        f"k8s.io/kubernetes {pinned_versions.KUBERNETES} {chart_tools.RELEASES[pinned_versions.KUBERNETES]}\n" in sums
    )
    assert len(chart_tools.RELEASES) == 2
    assert all(value.startswith("h1:") for value in chart_tools.RELEASES.values())


def test_sources_of_another_hash_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path))
    monkeypatch.setattr(go_builds, "go", lambda *_: '{"Sum": "h1:other", "Dir": "/"}')
    monkeypatch.setattr(chart_tools, "compile_missing", lambda _: None)
    with pytest.raises(ClusterError, match="are not the pinned ones: h1:other"):
        chart_tools.build_tools()
    assert not chart_tools.are_built()


@pytest.mark.parametrize("module", MODULES)
def test_every_program_comes_from_a_module_that_is_pinned(module: str) -> None:
    text = MODULES[module].read_text()
    required = set(re.findall(r"^\s+([\w./-]+) v", text, re.MULTILINE))
    for program in PROGRAMS:
        if program.module == module and not program.package.startswith("./"):
            assert any(program.package == name or program.package.startswith(f"{name}/") for name in required)


def test_kubernetes_stamps_its_version_and_lws_does_not() -> None:
    flags = {program.name: pinned_versions.linker_flags(program) for program in pinned_versions.LEVELS["full"]}
    assert f"k8s.io/component-base/version.gitVersion={pinned_versions.KUBERNETES}" in flags["kubelet"]
    assert flags["lws"] == "-s -w"


def test_assets_that_the_environment_names_are_taken_when_they_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert go_builds.assets() == pinned_versions.binaries()
    (tmp_path / "etcd").touch()
    assert go_builds.assets() == pinned_versions.binaries()
    (tmp_path / "kube-apiserver").touch()
    assert go_builds.assets() == tmp_path
    assert go_builds.build("api") == tmp_path


def test_a_level_is_ready_when_all_its_programs_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path))
    for program in pinned_versions.API:
        assert not go_builds.is_built("api")
        go_builds.path_of(program).parent.mkdir(parents=True, exist_ok=True)
        go_builds.path_of(program).touch()
    assert go_builds.is_built("api")
    assert not go_builds.is_built("full")

"""What is built is named by what it is built from."""

import re
from pathlib import Path

import pytest
from cluster import build, pins, tools
from cluster.say import ClusterError

MODULES = {name: pins.HERE / name / "go.mod" for name in ("kubernetes", "lws", "prometheus")}
PROGRAMS = (*pins.LEVELS["full"], pins.METRICS, pins.PROMTOOL)


def test_the_versions_that_are_named_are_those_of_the_modules() -> None:
    kubernetes, lws, prometheus = (path.read_text() for path in MODULES.values())
    assert f"k8s.io/kubernetes {pins.KUBERNETES}" in kubernetes
    assert f"helm.sh/helm/v4 {pins.HELM}" in kubernetes
    assert f"sigs.k8s.io/lws {pins.LWS}" in lws
    assert f"github.com/prometheus/prometheus {pins.PROMETHEUS}" in prometheus


def test_the_sources_that_the_openapi_is_taken_from_are_pinned_and_one_release_is_ours() -> None:
    sums = (pins.HERE / "kubernetes" / "go.sum").read_text()
    assert f"k8s.io/kubernetes {pins.KUBERNETES} {tools.RELEASES[pins.KUBERNETES]}\n" in sums
    assert len(tools.RELEASES) == 2
    assert all(value.startswith("h1:") for value in tools.RELEASES.values())


def test_sources_of_another_hash_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "go", lambda *_: '{"Sum": "h1:other", "Dir": "/"}')
    monkeypatch.setattr(tools, "compile_missing", lambda _: None)
    with pytest.raises(ClusterError, match="not those that are pinned: h1:other"):
        tools.make()
    assert not tools.ready()


@pytest.mark.parametrize("module", MODULES)
def test_every_program_comes_from_a_module_that_is_pinned(module: str) -> None:
    text = MODULES[module].read_text()
    required = set(re.findall(r"^\s+([\w./-]+) v", text, re.MULTILINE))
    for program in PROGRAMS:
        if program.module == module and not program.package.startswith("./"):
            assert any(program.package == name or program.package.startswith(f"{name}/") for name in required)


def test_kubernetes_stamps_its_version_and_lws_does_not() -> None:
    flags = {program.name: pins.linker_flags(program) for program in pins.LEVELS["full"]}
    assert f"k8s.io/component-base/version.gitVersion={pins.KUBERNETES}" in flags["kubelet"]
    assert flags["lws"] == "-s -w"


def test_assets_that_the_environment_names_are_taken_when_they_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert build.assets() == pins.binaries()
    (tmp_path / "etcd").touch()
    assert build.assets() == pins.binaries()
    (tmp_path / "kube-apiserver").touch()
    assert build.assets() == tmp_path
    assert build.build("api") == tmp_path


def test_a_level_is_ready_when_all_its_programs_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path))
    for program in pins.API:
        assert not build.ready("api")
        build.path_of(program).parent.mkdir(parents=True, exist_ok=True)
        build.path_of(program).touch()
    assert build.ready("api")
    assert not build.ready("full")

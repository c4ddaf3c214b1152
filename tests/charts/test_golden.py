"""The objects of the chart for sets of values, as golden files.

`python scripts/golden_files.py` writes the files; people review them.
"""

import subprocess
from pathlib import Path

import pytest

from fairlead_testing.kube.helm import CHART_FOLDER, HelmError, golden_text, render_chart

FOLDER = Path(__file__).parent
CASES = sorted((FOLDER / "values").glob("*.yaml"))


def test_values_render_their_golden_file(program: Path, case: Path) -> None:
    golden = (FOLDER / "golden" / case.name).read_text(encoding="utf-8")
    assert golden_text(render_chart(program, f"--values={case}")) == golden


def test_golden_files_match_the_sets_of_values() -> None:
    assert {path.name for path in (FOLDER / "golden").iterdir()} == {path.name for path in CASES}


def test_helm_lint_has_no_findings(program: Path, case: Path) -> None:
    done = subprocess.run(
        [str(program), "lint", "--strict", str(CHART_FOLDER), f"--values={case}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_kinds_unknown_to_the_cluster_are_left_out(program: Path) -> None:
    arguments = ("--set=serviceMonitors.enabled=true", "--set=httpRoute.enabled=true")
    kinds = {manifest["kind"] for manifest in render_chart(program, *arguments, served=())}
    assert not kinds & {"ServiceMonitor", "HTTPRoute"}
    assert {"ServiceMonitor", "HTTPRoute"} <= {manifest["kind"] for manifest in render_chart(program, *arguments)}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("operator.replica=2", "replica"),
        ("gatway.replicas=2", "gatway"),
        ("gateway.workers=0", "/gateway/workers"),
        ("gateway.workers=many", "/gateway/workers"),
        ("operator.lease=soon", "/operator/lease"),
        ("operator.logLevel=loud", "/operator/logLevel"),
        ("gateway.image.pullPolicy=Sometimes", "/gateway/image/pullPolicy"),
    ],
)
def test_unknown_or_invalid_value_is_refused_by_name(program: Path, wrong: str, named: str) -> None:
    with pytest.raises(HelmError) as refused:
        render_chart(program, f"--set={wrong}")
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("redis.urlSecret=ours", "redis.urlSecret names a Redis of your own: set redis.enabled to false"),
        ("redis.url=redis://ours", "redis.url names a Redis of your own: set redis.enabled to false"),
        ("redis.enabled=false,redis.url=redis://ours,redis.urlSecret=ours", "set only one"),
        ("redis.enabled=false,redis.url=http://ours", "/redis/url"),
        ("redis.enabled=false,redis.url=redis://:word@ours", "/redis/url"),
    ],
)
def test_two_redis_at_once_and_passwords_in_values_are_refused(program: Path, given: str, message: str) -> None:
    with pytest.raises(HelmError) as refused:
        render_chart(program, f"--set={given}")
    assert message in str(refused.value)


def test_parent_chart_may_have_more_globals(program: Path) -> None:
    assert render_chart(program, "--set=global.theirs=1")


def test_changed_values_file_is_rendered_again(program: Path, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    for replicas in (2, 5):
        values.write_text(f"gateway: {{replicas: {replicas}}}\n")
        manifests = render_chart(program, f"--values={values}")
        manifests.append({"kind": "changed by the caller"})
        assert [
            manifest["spec"]["replicas"]
            for manifest in manifests
            if manifest["kind"] == "Deployment" and manifest["metadata"]["name"] == "fairlead-gateway"
        ] == [replicas]
    assert {"kind": "changed by the caller"} not in render_chart(program, f"--values={values}")

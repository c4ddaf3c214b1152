"""`fairlead convert FILE…`: output, exit codes, and files that it rewrites or leaves alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fairlead.manifests.convert import convert_document

EARLIER = Path(__file__).parents[2] / "fairlead" / "manifests" / "earlier"
MANIFEST = """\
# small
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: tiny}
spec:
  model: {source: "hf://a/b"} # the weights
  engine: {kind: sim}
  pools: [{accelerator: nvidia-l4, replicas: {min: 2}}]
"""
CONVERTED = """\
# small
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: tiny}
spec:
  model: {uri: "hf://a/b"} # the weights
  engine: {type: Sim}
  pools: [{acceleratorClassName: nvidia-l4, minReplicas: 2}]
"""


def fairlead(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fairlead_cli", *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with earlier words."""
    path = tmp_path / "tiny.yaml"
    path.write_text(MANIFEST)
    path.chmod(0o640)
    return path


def test_manifest_is_printed_and_each_change_reported(file: Path) -> None:
    done = fairlead("convert", str(file))
    assert (done.returncode, done.stdout) == (0, CONVERTED)
    assert done.stderr.splitlines() == [
        f"{file}: spec.model.source is now spec.model.uri",
        f"{file}: spec.engine.kind is now spec.engine.type",
        f"{file}: spec.pools[0].accelerator is now spec.pools[0].acceleratorClassName",
        f"{file}: spec.pools[0].replicas is now minReplicas",
    ]
    assert file.read_text() == MANIFEST, "files stay without --in-place"


def test_stdin_is_converted() -> None:
    assert fairlead("convert", "-", stdin=MANIFEST).stdout == CONVERTED


def test_in_place_rewrites_the_file_and_prints_nothing(file: Path) -> None:
    done = fairlead("convert", "--in-place", "-f", str(file))
    assert (done.returncode, done.stdout) == (0, "")
    assert (file.read_text(), file.stat().st_mode & 0o777) == (CONVERTED, 0o640)
    again = fairlead("convert", "--in-place", str(file))
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_folder_of_earlier_examples_lints_clean_afterwards(tmp_path: Path) -> None:
    folder = shutil.copytree(EARLIER, tmp_path / "examples")
    assert fairlead("convert", "--in-place", str(folder)).returncode == 0
    for path in sorted(folder.iterdir()):
        done = fairlead("lint", str(path))
        assert done.returncode == 0, done.stderr
        documents = yaml.safe_load_all((EARLIER / path.name).read_text())
        assert list(yaml.safe_load_all(path.read_text())) == [convert_document(one).document for one in documents]


@pytest.mark.parametrize(
    ("earlier", "now", "named"),
    [
        ("{kind: sim}", "{kind: triton}", "spec.engine.type"),
        ("{kind: sim}", "{kind: sim, type: Sim}", "spec.engine.kind"),
        ("{min: 2}", "{min: 2, step: 1}", "minReplicas"),
        ("replicas: {min: 2}}]", "}]\n  objectives: {ttft: 1s, target: 0.95000000001}", "spec.slo.target"),
        ("replicas: {min: 2}}]", "}]\n  objectives: {ttft: 1s}\n  slo: {ttft: 1s}", "slo"),
    ],
)
def test_refusal_names_the_new_field_and_writes_no_file(file: Path, earlier: str, now: str, named: str) -> None:
    wrong = file.with_name("wrong.yaml")
    wrong.write_text(MANIFEST.replace(earlier, now))
    done = fairlead("convert", "--in-place", str(file), str(wrong))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{wrong}: spec.")
    assert named in done.stderr
    assert file.read_text() == MANIFEST, "all files or none"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no file was given"),
        (("--cluster", "a.yaml"), "--cluster takes no files"),
        (("--cluster", "--in-place"), "--cluster takes no files"),
        (("--in-place", "-"), "standard input cannot be rewritten"),
    ],
)
def test_wrong_usage_exits_2(words: tuple[str, ...], message: str) -> None:
    done = fairlead("convert", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr

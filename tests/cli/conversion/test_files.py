"""`fairlead convert FILE…`: output, exit codes, and files that it rewrites or leaves alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fairlead.manifests.convert import convert_document
from fairlead_testing.cli.command_line import run_command_line

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


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with earlier words."""
    path = tmp_path / "tiny.yaml"
    path.write_text(MANIFEST)
    path.chmod(0o640)
    return path


def test_manifest_is_printed_and_each_change_reported(file: Path) -> None:
    done = run_command_line("convert", str(file))
    assert (done.returncode, done.stdout) == (0, CONVERTED)
    assert done.stderr.splitlines() == [
        f"{file}: spec.model.source is now spec.model.uri",
        f"{file}: spec.engine.kind is now spec.engine.type",
        f"{file}: spec.pools[0].accelerator is now spec.pools[0].acceleratorClassName",
        f"{file}: spec.pools[0].replicas is now minReplicas",
    ]
    assert file.read_text() == MANIFEST, "files stay without --in-place"


def test_stdin_is_converted_by_the_program() -> None:
    command = [sys.executable, "-m", "fairlead_cli", "convert", "-"]
    done = subprocess.run(command, input=MANIFEST, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, CONVERTED)


def test_in_place_rewrites_the_file_and_prints_nothing(file: Path) -> None:
    done = run_command_line("convert", "--in-place", "-f", str(file))
    assert (done.returncode, done.stdout) == (0, "")
    assert (file.read_text(), file.stat().st_mode & 0o777) == (CONVERTED, 0o640)
    again = run_command_line("convert", "--in-place", str(file))
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_folder_of_earlier_examples_lints_clean_afterwards(tmp_path: Path) -> None:
    folder = shutil.copytree(EARLIER, tmp_path / "examples")
    assert run_command_line("convert", "--in-place", str(folder)).returncode == 0
    for path in sorted(folder.iterdir()):
        done = run_command_line("lint", str(path))
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
    done = run_command_line("convert", "--in-place", str(file), str(wrong))
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
        (("--cluster", "--external"), "--cluster takes no files"),
        (("--in-place", "--out", "b.yaml", "a.yaml"), "--in-place writes the files themselves"),
        (("--in-place", "--json", "a.yaml"), "--in-place writes YAML files"),
    ],
)
def test_wrong_usage_exits_2(words: tuple[str, ...], message: str) -> None:
    done = run_command_line("convert", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


MODEL = """\
apiVersion: kubeai.org/v1
kind: Model
metadata: {name: phi}
spec: {engine: VLLM, url: "hf://a/b", resourceProfile: "nvidia-gpu-l4:1", minReplicas: 1, maxReplicas: 1, owner: us}
"""
SECRET = """\
apiVersion: v1
kind: Secret
metadata: {name: token}
"""


def test_other_systems_are_converted_together_with_own_manifests(file: Path) -> None:
    file.write_text(f"{MODEL}---\n{SECRET}---\n{MANIFEST}")
    done = run_command_line("convert", str(file))
    assert done.returncode == 0, done.stderr
    assert [one["metadata"]["name"] for one in yaml.safe_load_all(done.stdout)] == ["tiny", "phi"]
    assert f"{file}: Secret token: not carried over: it stays as it is" in done.stderr
    assert f"{file}: Model phi: spec.owner: not carried over: /v1/models names Fairlead" in done.stderr


def test_files_of_other_systems_are_not_rewritten_in_place(file: Path) -> None:
    file.write_text(MODEL)
    done = run_command_line("convert", "--in-place", str(file))
    assert (done.returncode, done.stdout, file.read_text()) == (2, "", MODEL)
    assert "write another file: --out FILE" in done.stderr


def test_json_has_manifests_and_notes(file: Path) -> None:
    file.write_text(MODEL)
    done = run_command_line("convert", "--json", str(file))
    document = json.loads(done.stdout)
    assert (done.stderr, [one["kind"] for one in document["manifests"]]) == ("", ["ModelDeployment"])
    notes = {note["field"]: note["outcome"] for note in document["notes"]}
    assert notes == {"spec": "changed", "spec.resourceProfile": "changed", "spec.owner": "dropped"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MODEL.replace("VLLM", "OLlama"), "Model phi: spec.engine: KubeAI: Fairlead does not run OLlama"),
        ("apiVersion: orchestration.aibrix.ai/v1alpha1\nkind: KVCache\n", "there is nothing to convert"),
        (MODEL.replace("maxReplicas: 1", "maxReplicas: 0"), "ModelDeployment phi: spec.pools[0].maxReplicas"),
    ],
)
def test_foreign_manifest_that_cannot_be_converted_exits_1(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    done = run_command_line("convert", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


def test_output_file_is_written_only_when_all_is_converted(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "converted.yaml"
    file.write_text(MODEL)
    done = run_command_line("convert", "--out", str(output), str(file))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert yaml.safe_load(output.read_text())["metadata"]["name"] == "phi"
    before = output.read_text()
    file.write_text(MODEL.replace("VLLM", "OLlama"))
    assert run_command_line("convert", "--out", str(output), str(file)).returncode == 1
    assert output.read_text() == before


def test_accelerator_that_lint_refuses_is_refused(file: Path, tmp_path: Path) -> None:
    file.write_text(MODEL)
    done = run_command_line("convert", "--accelerator", "mine", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert "--accelerator: no AcceleratorClass among the files and no built-in one is called mine" in done.stderr
    own, output = tmp_path / "class.yaml", tmp_path / "converted.yaml"
    own.write_text(
        "apiVersion: serving.fairlead.io/v1alpha1\nkind: AcceleratorClass\nmetadata: {name: mine}\n"
        "spec: {profile: {preset: l4-qwen8b}}\n"
    )
    done = run_command_line("convert", "--accelerator", "mine", "--out", str(output), str(own), str(file))
    assert done.returncode == 0, done.stderr
    assert run_command_line("lint", str(output)).returncode == 0


def test_route_to_the_old_engines_is_not_applied_as_before(file: Path) -> None:
    route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: phi}\n"
    file.write_text(f"{MODEL}---\n{route}")
    done = run_command_line("convert", str(file))
    assert f"{file}: HTTPRoute phi: not carried over: it serves the old engines: keep it until" in done.stderr


def test_what_to_do_first_is_the_last_note(file: Path) -> None:
    file.write_text(
        "model_list: [{model_name: a, litellm_params: "
        "{model: openai/a, api_base: 'http://a', api_key: hunter2, rpm: 1}}]\n"
    )
    done = run_command_line("convert", str(file))
    lines = done.stderr.splitlines()
    assert [line for line in lines if "before you apply the output" in line] == lines[-1:]
    assert "hunter2" not in done.stderr + done.stdout


def test_foreign_manifest_is_not_rewritten_in_place(file: Path) -> None:
    file.write_text(MODEL)
    done = run_command_line("convert", "--in-place", str(file))
    assert done.returncode == 2
    assert file.read_text() == MODEL


_INFERENCE_SERVICE = "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\n"


@pytest.mark.parametrize(
    "text",
    [
        _INFERENCE_SERVICE + "metadata: [a]\nspec: {predictor: {model: {storageUri: 'hf://a/b'}}}\n",
        "apiVersion: serving.kserve.io/v1alpha1\nkind: ServingRuntime\nmetadata: {name: a}\nspec: text\n---\n"
        + _INFERENCE_SERVICE
        + "metadata: {name: a}\nspec: {predictor: {model: {runtime: a}}}\n",
        "apiVersion: [a]\nkind: {a: b}\nmetadata: 7\nmodel_list: []\n",
        "kind: Deployment\nmetadata: {labels: 7}\n",
        "apiVersion: v1\nkind: List\nitems: 7\n",
        "model_list: [{model_name: a, litellm_params: {model: openai/b, api_base: 'http://[::1'}}]\n",
    ],
)
def test_document_whose_fields_have_another_form_is_a_problem(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    done = run_command_line("convert", str(tmp_path / "odd.yaml"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(str(tmp_path / "odd.yaml"))

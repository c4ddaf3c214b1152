"""`fairlead convert FILE…`: output, exit codes, and the file that it writes."""

import json
from pathlib import Path

import pytest
import yaml

from fairlead_testing.cli.command_line import run_command_line, run_program
from fairlead_testing.yaml_documents import load_document, load_documents

MANIFEST = """\
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: tiny}
spec:
  model: {uri: "hf://a/b"}
  pools: [{acceleratorClassName: nvidia-l4, minReplicas: 2}]
"""
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


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tiny.yaml"


def test_no_file_is_wrong_usage() -> None:
    done = run_command_line("convert")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no file was given" in done.stderr


def test_stdin_is_converted_by_the_program() -> None:
    done = run_program("convert", "-", stdin=MODEL)
    assert (done.returncode, load_document(done.stdout)["metadata"]["name"]) == (0, "phi")


def test_other_systems_are_converted_together_with_own_manifests(file: Path) -> None:
    file.write_text(f"{MODEL}---\n{SECRET}---\n{MANIFEST}")
    done = run_command_line("convert", str(file))
    assert done.returncode == 0, done.stderr
    assert [one["metadata"]["name"] for one in load_documents(done.stdout)] == ["tiny", "phi"]
    assert f"{file}: Secret token: not carried over: it stays as it is" in done.stderr
    assert f"{file}: Model phi: spec.owner: not carried over: /v1/models names Fairlead" in done.stderr


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
        (MANIFEST, "there is nothing to convert: no object is of another system"),
        (f"{MODEL}---\n{MANIFEST.replace('uri', 'source')}", "spec.model.uri: is missing"),
        (MODEL.replace("maxReplicas: 1", "maxReplicas: 0"), "ModelDeployment phi: spec.pools[0].maxReplicas"),
    ],
)
def test_manifest_that_cannot_be_converted_exits_1(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    done = run_command_line("convert", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


def test_output_file_is_written_only_when_all_is_converted(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "converted.yaml"
    file.write_text(MODEL)
    done = run_command_line("convert", "--out", str(output), str(file))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert load_document(output.read_text())["metadata"]["name"] == "phi"
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


def test_list_of_kubectl_is_converted(file: Path) -> None:
    items = [load_document(text) for text in (MODEL, SECRET)]
    items[0]["status"] = {"replicas": {"all": 1}}
    file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}))
    done = run_command_line("convert", str(file))
    assert (done.returncode, load_document(done.stdout)["metadata"]["name"]) == (0, "phi")
    assert "Secret token: not carried over" in done.stderr


@pytest.mark.parametrize(
    "text", ["apiVersion: v2\nname: chart\nversion: 1.0.0\n", "replicaCount: 2\n", "- a\n", "text\n"]
)
def test_file_that_nothing_reads_is_a_problem_if_it_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(MODEL)
    (tmp_path / "other.yaml").write_text(text)
    reason = "other.yaml: it is no Kubernetes object, and no file of a system that Fairlead converts"
    named = run_command_line("convert", str(tmp_path / "model.yaml"), str(tmp_path / "other.yaml"))
    assert (named.returncode, named.stdout) == (1, "")
    assert reason in named.stderr
    folder = run_command_line("convert", str(tmp_path))
    assert folder.returncode == 0, folder.stderr
    assert "other.yaml: not carried over: it is no Kubernetes object" in folder.stderr


@pytest.mark.parametrize(
    ("first", "second"), [("phi-3.1", "phi-3-1"), ("Phi", "phi"), ("phi_4", "phi.4"), ("phi", "phi")]
)
def test_two_models_of_one_name_are_refused(first: str, second: str, file: Path) -> None:
    file.write_text("---\n".join(MODEL.replace("name: phi", f'name: "{name}"') for name in (first, second)))
    done = run_command_line("convert", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert "2 objects would have this name (give all but one another name in their files" in done.stderr


@pytest.mark.parametrize(
    ("fields", "bounds"), [("minReplicas: 0", (0, 1)), ("minReplicas: 2", (2, 2)), ("replicas: 3", (0, 3))]
)
def test_kubeai_model_without_a_maximum_keeps_its_minimum(fields: str, bounds: tuple[int, int], file: Path) -> None:
    file.write_text(MODEL.replace("minReplicas: 1, maxReplicas: 1", fields))
    done = run_command_line("convert", str(file))
    pool = load_document(done.stdout)["spec"]["pools"][0]
    assert (pool["minReplicas"], pool["maxReplicas"]) == bounds
    assert f"it is left out, so it becomes {bounds[1]}" in done.stderr


@pytest.mark.parametrize(
    ("profile", "named"),
    [("amd-gpu-mi300x:1", "amd-mi300x"), ("cpu:2", "cpu"), ("google-tpu-v5e-1x1:1", "google-tpu-v5e")],
)
def test_image_of_the_chart_on_other_devices_is_to_be_replaced(profile: str, named: str, file: Path) -> None:
    file.write_text(MODEL.replace("nvidia-gpu-l4:1", profile))
    done = run_command_line("convert", str(file))
    assert f"before you apply the output: the chart's image is built for NVIDIA's GPUs: write an image for {named}" in (
        done.stderr
    )
    file.write_text(MODEL.replace("nvidia-gpu-l4:1", profile).replace("owner: us", "image: 'me/mine:1'"))
    assert "built for NVIDIA" not in run_command_line("convert", str(file)).stderr

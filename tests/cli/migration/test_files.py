"""`fairlead convert FILE…`: output, exit codes, and the file that it writes."""

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fairlead.api.spec.route.spec import MAX_WEIGHT
from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead.manifests.loader import combine_texts, plan_routes, read_object
from fairlead_cli.manifest_conversion import Migration, migrate, system_of
from fairlead_cli.migration.assembly import whole_weights
from fairlead_cli.migration.drafts import MigrationOptions
from fairlead_cli.migration.field_reader import Note, Outcome
from fairlead_testing.cli.command_line import run_command_line, run_program
from fairlead_testing.cli.golden_conversions import golden_conversions
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
    assert [document["metadata"]["name"] for document in load_documents(done.stdout)] == ["tiny", "phi"]
    assert f"{file}: Secret token: not carried over: it stays as it is" in done.stderr
    assert f"{file}: Model phi: spec.owner: not carried over: /v1/models names Fairlead" in done.stderr


def test_json_has_manifests_and_notes(file: Path) -> None:
    file.write_text(MODEL)
    done = run_command_line("convert", "--json", str(file))
    document = json.loads(done.stdout)
    assert (done.stderr, [manifest["kind"] for manifest in document["manifests"]]) == ("", ["ModelDeployment"])
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


@pytest.mark.parametrize("kind", ["HTTPRoute", "Ingress", "VirtualService", "DestinationRule", "GRPCRoute"])
def test_route_to_the_old_engines_is_not_applied_as_before(file: Path, kind: str) -> None:
    file.write_text(f"{MODEL}---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: phi}}\n")
    done = run_command_line("convert", str(file))
    assert f"{file}: {kind} phi: not carried over: it serves the old engines: keep it until" in done.stderr
    assert ("the Service fairlead-gateway, port 80" in done.stderr) is (
        kind in ("HTTPRoute", "Ingress", "VirtualService")
    )


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


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan", "9" * 400 + ".0", "1.0e+999"])
@pytest.mark.parametrize("field", ["minReplicas", "maxReplicas"])
def test_count_that_no_number_can_be_is_a_problem(tmp_path: Path, field: str, number: str) -> None:
    (tmp_path / "odd.yaml").write_text(re.sub(f"{field}: 1", f"{field}: {number}", MODEL))
    done = run_command_line("convert", str(tmp_path / "odd.yaml"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not a whole number" in done.stderr


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
    assert ("helm template" in named.stderr) is (":" in text), "a mapping may be values of a chart"
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


FOLDER = Path(__file__).parent / "manifests"
"""Manifests of other systems, written after their formats, beyond those of `docs/migrate`."""
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
H100 = MigrationOptions(accelerator="nvidia-h100")


def load(name: str) -> list[dict[str, Any]]:
    return list(load_documents((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def convert(name: str, options: MigrationOptions = H100) -> Migration:
    return migrate([("f.yaml", document) for document in load(name)], options)


def reasons(notes: tuple[Note, ...]) -> dict[str, str]:
    return {note.field: note.reason for note in notes}


def test_each_manifest_and_its_notes_are_as_in_its_golden_files() -> None:
    expected = dict(golden_conversions(FOLDER.parent))
    assert sorted(expected) == sorted((FOLDER.parent / "golden").glob("*.yaml"))
    for path, text in expected.items():
        assert text == path.read_text(encoding="utf-8"), (
            f"{path.name}: run scripts/golden_files.py, read the difference"
        )


def test_a_token_in_plain_text_is_in_no_output() -> None:
    assert "hf_plain_text" in (FOLDER / "production-stack-disaggregated.yaml").read_text(encoding="utf-8")
    assert all("hf_plain_text" not in text for _, text in golden_conversions(FOLDER.parent))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("external", [False, True])
def test_output_is_valid(name: str, external: bool) -> None:
    migration = convert(name, MigrationOptions("nvidia-h100", external))
    assert migration.manifests
    for manifest in migration.manifests:
        read_object(manifest)
        is_model = manifest["kind"] == "ModelDeployment"
        assert not external or not is_model or manifest["spec"]["engine"] == {"type": "External"}


def mappings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        yield path
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from mappings(child, (*path, key))


@pytest.mark.parametrize("name", NAMES)
def test_unknown_field_is_never_lost_in_silence(name: str) -> None:
    """A field that is added anywhere is in the output or in a note."""
    documents = load(name)
    checked = 0
    for number, document in enumerate(documents):
        for path in mappings(document):
            changed = copy.deepcopy(documents)
            holder = changed[number]
            for step in path:
                holder = holder[step]
            holder["zzNew"] = "zzValue"
            migration = migrate([("f.yaml", document) for document in changed], H100)
            notes = [f"{note.field} {note.reason}" for note in migration.notes]
            covered = json.dumps(migration.manifests) + " ".join(notes)
            if "zzNew" not in covered and not is_noted_above(path, migration.notes):
                pytest.fail(f"{path}: neither in the output nor in {notes}")
            checked += 1
    assert checked > 5


GONE = (Outcome.DROPPED, Outcome.LEFT_OUT)


def is_noted_above(path: tuple[Any, ...], notes: tuple[Note, ...]) -> bool:
    """Returns True if a note says that the whole of a field above was dropped, or a variable."""
    dropped = {re.sub(r"\[\d+\]", "", note.field) for note in notes if note.outcome in GONE}
    above = [".".join(str(step) for step in path[:end] if isinstance(step, str)) for end in range(1, len(path) + 1)]
    return any(field in dropped for field in above)


def test_configuration_that_is_missing_is_reported() -> None:
    service = load("kserve-disaggregated")[1]
    migration = migrate([("f.yaml", service)], H100)
    assert "large is not among the files" in reasons(migration.notes)["spec.baseRefs[0].name"]


def test_autoscaler_without_its_target_is_reported() -> None:
    documents = [load("kubeai-fixed")[0], load("aibrix-disaggregated")[1]]
    migration = migrate([("f.yaml", document) for document in documents], H100)
    assert "not among the files" in reasons(migration.notes)["spec.scaleTargetRef"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {"apiVersion": "kubeai.org/v1", "kind": "Model", "spec": {"engine": "OLlama", "url": "ollama://a"}},
            "Fairlead does not run OLlama",
        ),
        (
            {"apiVersion": "kubeai.org/v1", "kind": "Model", "spec": {"engine": "VLLM", "url": "oss://a/b"}},
            "does not load weights from 'oss://a/b'",
        ),
        (
            {
                "apiVersion": "kubeai.org/v1",
                "kind": "Model",
                "metadata": {"name": "m"},
                "spec": {"engine": "VLLM", "url": "hf://a/b", "resourceProfile": "nvidia-gpu-t4:1"},
            },
            "no built-in AcceleratorClass is for nvidia-gpu-t4",
        ),
        (
            {
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                "metadata": {"name": "m"},
                "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://a/b"}}},
            },
            "sklearn is not a format of vLLM",
        ),
        ({"modelArtifacts": {"uri": "hf://a/b"}}, "is missing"),
        ({"servingEngineSpec": {"modelSpec": "x"}}, "is not a list of mappings"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_its_field(document: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        migrate([("f.yaml", document)], MigrationOptions())
    assert caught.value.field is not None
    assert caught.value.field.startswith("f.yaml")


def test_only_known_documents_have_a_system() -> None:
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {}}
    assert system_of(deployment) is None
    assert system_of("text") is None
    assert system_of({"model_list": []}) is not None


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("ray.io/v1", "RayService"),
        ("kaito.sh/v1beta1", "Workspace"),
        ("kaito.sh/v1alpha1", "InferenceSet"),
        ("nvidia.com/v1alpha1", "DynamoGraphDeployment"),
        ("apps.nvidia.com/v1alpha1", "NIMService"),
        ("airunway.ai/v1alpha1", "ModelDeployment"),
        ("inference.llmkube.dev/v1alpha1", "InferenceService"),
    ],
)
@pytest.mark.parametrize("beside", [MODEL, ""])
def test_model_of_a_system_that_is_not_read_is_an_error(version: str, kind: str, beside: str, file: Path) -> None:
    file.write_text(f"{beside}\n---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: served}}\n")
    done = run_command_line("convert", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{kind} served: not converted: Fairlead does not convert this kind" in done.stderr
    assert "nothing is written" in done.stderr
    assert "no object is of another system" not in done.stderr


def convert_route_file(documents: list[dict[str, Any]], *, external: bool = False) -> Migration:
    return migrate([("f.yaml", document) for document in documents], MigrationOptions("nvidia-h100", external))


def specs(migration: Migration, kind: str) -> dict[str, dict[str, Any]]:
    return {
        manifest["metadata"]["name"]: manifest["spec"] for manifest in migration.manifests if manifest["kind"] == kind
    }


def notes_of(migration: Migration, field: str) -> list[Note]:
    return [note for note in migration.notes if note.field == field]


@pytest.mark.parametrize("name", ["kthena-routes", "kserve-canary", "litellm-split"])
@pytest.mark.parametrize("external", [False, True])
def test_the_output_serves_together_on_one_machine(name: str, external: bool) -> None:
    manifests = convert_route_file(load(name), external=external).manifests
    text = yaml.safe_dump_all(manifests)
    loaded, problems = combine_texts([("out.yaml", text)], limits=Limits())
    assert not problems
    has_route = not (name == "kserve-canary" and external)
    assert len(plan_routes(loaded)) == has_route


def kthena_route(**fields: Any) -> list[dict[str, Any]]:
    documents = copy.deepcopy(load("kthena-routes"))
    rules = [{"targetModels": [{"modelServerName": "qwen-v1"}]}]
    documents[2]["spec"] = {"modelName": "assistant", "rules": rules} | fields
    return documents


def test_a_name_that_engines_have_needs_no_route() -> None:
    migration = convert_route_file(kthena_route(modelName="Qwen/Qwen3-8B"))
    assert not specs(migration, "ModelRoute")
    [note] = notes_of(migration, "spec.modelName")
    assert note.outcome is Outcome.CHANGED


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (
            {
                "modelName": "Qwen/Qwen3-8B",
                "rules": [{"targetModels": [{"modelServerName": "qwen-v1"}, {"modelServerName": "qwen-v2"}]}],
            },
            "spec.modelName",
        ),
        ({"modelName": "", "loraAdapters": ["lora-a"]}, "spec.modelName"),
        (
            {
                "rules": [
                    {"modelMatch": {"headers": {"a": {"exact": "b"}}}, "targetModels": [{"modelServerName": "qwen-v1"}]}
                ]
            },
            "spec.rules",
        ),
    ],
)
def test_a_route_of_kthena_that_none_can_stand_for_is_reported(fields: dict[str, Any], field: str) -> None:
    migration = convert_route_file(kthena_route(**fields))
    assert not specs(migration, "ModelRoute")
    assert Outcome.LEFT_OUT in [note.outcome for note in notes_of(migration, field)]


def test_a_server_of_kthena_that_is_missing_is_reported() -> None:
    migration = convert_route_file(load("kthena-routes")[2:])
    assert "qwen-v1-external" in str(specs(migration, "ModelRoute"))
    notes = [note for note in migration.notes if note.outcome is Outcome.REQUIRED]
    assert Counter(note.reason for note in notes)["qwen-v1 is not among the files: give it too, with -f"]


def test_a_server_of_kthena_without_a_model_gets_the_name_of_requests() -> None:
    documents = kthena_route()
    del documents[0]["spec"]["model"]
    migration = convert_route_file(documents)
    assert specs(migration, "ModelDeployment")["qwen-v1-external"]["model"]["servedNames"] == ["assistant"]
    assert not specs(migration, "ModelRoute")


@pytest.mark.parametrize(
    ("first", "second", "weights"),
    [({}, {}, [1, 1]), ({"rpm": 300}, {"rpm": 100}, [3, 1]), ({"weight": 0, "tpm": 4}, {"tpm": 6}, [2, 3])],
)
def test_shares_are_those_of_simple_shuffle(first: dict[str, int], second: dict[str, int], weights: list[int]) -> None:
    entries = [
        {"model_name": "chat", "litellm_params": {"model": f"openai/{name}", "api_base": "http://a:8000", **more}}
        for name, more in (("a", first), ("b", second))
    ]
    [spec] = specs(convert_route_file([{"model_list": entries}]), "ModelRoute").values()
    assert [target["weight"] for target in spec["targets"]] == weights


@pytest.mark.parametrize(
    ("name", "more", "field"),
    [("a", {}, "model_name"), ("chat", {"weight": -1}, "weight"), ("chat", {"weight": "x"}, "weight")],
)
def test_a_split_of_litellm_that_is_wrong_names_its_field(name: str, more: dict[str, Any], field: str) -> None:
    entries = [
        {"model_name": name, "litellm_params": {"model": f"openai/{engine}", "api_base": "http://a:8000", **more}}
        for engine in ("a", "b")
    ]
    with pytest.raises(BadInput) as refused:
        convert_route_file([{"model_list": entries}])
    assert (refused.value.field or "").endswith(field)


def test_a_canary_of_kserve_alone_is_reported() -> None:
    migration = convert_route_file(load("kserve-canary")[1:])
    assert not specs(migration, "ModelRoute")
    assert [note.outcome for note in notes_of(migration, "spec.predictor.canaryTrafficPercent")] == [Outcome.DROPPED]


@given(st.lists(st.fractions(min_value=0, max_value=10**9), min_size=1, max_size=16))
def test_weights_are_whole_and_keep_their_ratios(shares: list[Fraction]) -> None:
    weights = whole_weights(shares)
    assert all(0 <= weight <= MAX_WEIGHT for weight in weights)
    assert [weight > 0 for weight in weights] == [share > 0 for share in shares]
    greatest = max(range(len(shares)), key=lambda index: shares[index])
    for weight, share in zip(weights, shares, strict=True):
        exact = share / shares[greatest] * weights[greatest] if shares[greatest] else 0
        assert abs(weight - exact) <= 1


OWN = {"model": "hosted_vllm/a/own", "api_base": "http://own:8000/v1"}
HOSTED = {"model": "groq/llama", "api_base": "https://api.groq.com/openai/v1", "api_key": "os.environ/GROQ_API_KEY"}


def litellm(router: dict[str, Any], library: dict[str, Any] | None = None, **models: Any) -> Migration:
    entries = [{"model_name": name, "litellm_params": parameters} for name, parameters in models.items()]
    return convert_route_file([{"model_list": entries, "router_settings": router, "litellm_settings": library or {}}])


def edges(migration: Migration, name: str) -> list[str]:
    spec = specs(migration, "ModelRoute")[name]
    return [f"{'+'.join(edge['when'])}: {edge['after']} → {edge['to']}" for edge in spec.get("onFailure", [])]


def test_fallbacks_of_litellm_follow_in_order_and_leave_for_an_api() -> None:
    small = {"model": "hosted_vllm/a/small", "api_base": "http://small:8000/v1"}
    router = {"fallbacks": [{"chat": ["small", "hosted", "claude", "chat"]}]}
    library = {"context_window_fallbacks": [{"chat": ["hosted"]}], "content_policy_fallbacks": [{"chat": ["hosted"]}]}
    migration = litellm(router, library, chat=OWN, small=small, hosted=HOSTED)
    assert edges(migration, "chat") == [
        "Unavailable+NoCapacity: chat-own → small",
        "Unavailable+NoCapacity: small → hosted",
        "ContextTooLong: chat-own → hosted",
    ]
    models = specs(migration, "ModelDeployment")
    endpoint = {"url": HOSTED["api_base"], "tokenSecretKeyRef": {"name": "groq-api-key", "key": "token"}}
    assert models["hosted"] == {
        "model": {"uri": "openai://llama"},
        "engine": {"type": "OpenAI"},
        "pools": [{"name": "main", "endpoints": [endpoint]}],
    }
    [note] = notes_of(migration, "router_settings.fallbacks")
    assert note.reason.startswith("claude is no fallback")
    [note] = notes_of(migration, "litellm_settings.content_policy_fallbacks")
    assert "when: [Refused]" in note.reason


def test_default_fallbacks_of_litellm_are_for_models_without_a_list() -> None:
    small = {"model": "hosted_vllm/a/small", "api_base": "http://small:8000/v1"}
    library = {"default_fallbacks": ["hosted"], "fallbacks": [{"chat": ["small"]}]}
    migration = litellm({}, library, chat=OWN, small=small, hosted=HOSTED)
    assert edges(migration, "chat") == ["Unavailable+NoCapacity: chat-own → small-small"]
    assert edges(migration, "small") == ["Unavailable+NoCapacity: small-small → hosted"]
    assert "hosted" not in specs(migration, "ModelRoute")


def test_fallbacks_of_litellm_that_cannot_be_carried_over_are_noted() -> None:
    same = {"model": "hosted_vllm/chat", "api_base": "http://own:8000/v1"}
    migration = litellm({"fallbacks": [{"chat": ["hosted"]}, {"gone": ["chat"]}]}, chat=same, hosted=HOSTED)
    assert not specs(migration, "ModelRoute")
    reasons = [note.reason for note in notes_of(migration, "router_settings.fallbacks")]
    assert reasons[0].startswith("gone is not carried over")
    assert reasons[1].startswith("the engines call the model chat too")
    small = {"model": "hosted_vllm/a/small", "api_base": "http://small:8000/v1"}
    lists = {
        "fallbacks": [{"chat": ["small", "hosted"]}],
        "context_window_fallbacks": [{"chat": ["hosted", "small"]}],
    }
    migration = litellm(lists, chat=OWN, small=small, hosted=HOSTED)
    assert edges(migration, "chat")[2:] == ["ContextTooLong: chat-own → hosted"]
    [note] = notes_of(migration, "router_settings.context_window_fallbacks")
    assert "forms a loop" in note.reason


@pytest.mark.parametrize("value", [["a"], "hosted", {"chat": ["hosted"]}])
def test_fallbacks_of_another_form_are_refused(value: Any) -> None:
    with pytest.raises(BadInput) as refused:
        litellm({"fallbacks": value}, chat=OWN, hosted=HOSTED)
    assert (refused.value.field or "").endswith("router_settings.fallbacks")


@pytest.mark.parametrize("names", ["hosted", [1], [{"model": "hosted"}]])
def test_fallback_that_is_no_name_is_noted(names: Any) -> None:
    migration = litellm({"fallbacks": [{"chat": names}]}, chat=OWN, hosted=HOSTED)
    assert not specs(migration, "ModelRoute")
    [note] = notes_of(migration, "router_settings.fallbacks")
    assert (note.outcome, note.reason) == (Outcome.DROPPED, "chat: not a list of the names of models")


def test_provider_without_https_stays_in_litellm() -> None:
    migration = litellm({}, chat=OWN, hosted=HOSTED | {"api_base": "http://api.groq.com/openai/v1"})
    [note] = notes_of(migration, "model_list[1]")
    assert "without an https:// address" in note.reason

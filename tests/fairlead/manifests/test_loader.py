"""Manifests: valid ones get their defaults, invalid ones are refused with file, line, field and
fix.
"""

import io
from pathlib import Path

import pytest

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.engine_profile import EngineProfile, builtin_profile, builtin_profiles
from fairlead.errors import BadInput, FileProblem, ManifestError
from fairlead.fleet.model import Instance, Model, ModelRouting, RoutingPreset, SloTargets
from fairlead.limits import Limits
from fairlead.manifests.foreign_words import _WORDS
from fairlead.manifests.loader import Manifests, combine_texts, load_manifests, read_object, to_fleet_model
from fairlead.manifests.validation_messages import field_at
from fairlead_gateway.routing import ModelRouter, RouteRequest, prefix_chain

SMALLEST = """\
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: qwen3-8b}
spec:
  model: {uri: "hf://Qwen/Qwen3-8B"}
  pools: [{acceleratorClassName: nvidia-l4}]
"""
CLASS = """\
apiVersion: serving.fairlead.io/v1alpha1
kind: AcceleratorClass
metadata: {name: mine}
spec:
  profile: {preset: 910b4}
"""


def combine(*texts: str) -> tuple[Manifests, list[FileProblem]]:
    return combine_texts([(f"{number}.yaml", text) for number, text in enumerate(texts)], limits=Limits())


def load_valid(*texts: str) -> Manifests:
    manifests, problems = combine(*texts)
    assert problems == []
    return manifests


def only_problem(*texts: str) -> tuple[int, str, str, str]:
    (problem,) = combine(*texts)[1]
    return problem.line, problem.field, problem.message, problem.fix


def test_smallest_manifest_gets_its_defaults() -> None:
    manifests = load_valid(SMALLEST)
    (deployment,) = manifests.models
    (pool,) = deployment.spec.pools
    assert deployment.key == "default/qwen3-8b"
    assert (deployment.spec.engine.type, deployment.spec.engine.args) == ("VLLM", [])
    assert (pool.name, pool.role, pool.min_replicas) == ("main", "Serve", 1)
    assert to_fleet_model(deployment) == Model("default", "qwen3-8b", SloTargets())
    assert manifests.engine_profile(pool) == builtin_profile("l4-qwen8b")


def test_every_field_is_understood() -> None:
    text = SMALLEST.replace("name: qwen3-8b", "name: a, namespace: chat, labels: {x: z}, annotations: {a: b}").replace(
        "  pools: [{acceleratorClassName: nvidia-l4}]\n",
        "  engine: {type: Sim, args: [--fault=hang], env: [{name: A, value: b}, {name: C}]}\n"
        "  pools:\n    - {name: one, role: Serve, acceleratorClassName: mine, minReplicas: 3}\n"
        "    - {name: two, acceleratorClassName: 910b4}\n"
        "  slo: {target: '90%', ttft: 800ms, ttftPerKiloToken: 120ms, tpot: 40ms}\n"
        "  routing: {preset: session, maxAttempts: 1}\n",
    )
    manifests = load_valid(text, CLASS)
    (deployment,) = manifests.models
    objectives = SloTargets(0.9, 0.8, 0.12, 0.04)
    assert to_fleet_model(deployment) == Model("chat", "a", objectives, ModelRouting("session", max_attempts=1))
    assert [(variable.name, variable.value) for variable in deployment.spec.engine.env] == [("A", "b"), ("C", "")]
    assert [manifests.engine_profile(pool) for pool in deployment.spec.pools] == [
        builtin_profile("910b4"),
        builtin_profile("910b4"),
    ]


def test_file_accelerator_takes_precedence_over_builtin() -> None:
    own = CLASS.replace("name: mine", "name: nvidia-l4").replace(
        "{preset: 910b4}", "{prefillTokenSeconds: 1, kvTokens: 9}"
    )
    manifests = load_valid(SMALLEST, own)
    assert manifests.engine_profile(manifests.models[0].spec.pools[0]) == EngineProfile("nvidia-l4", 1.0, kv_tokens=9)


def test_every_builtin_accelerator_has_a_profile() -> None:
    for name in builtin_accelerators():
        manifests = load_valid(SMALLEST.replace("nvidia-l4", name))
        assert manifests.engine_profile(manifests.models[0].spec.pools[0]) in builtin_profiles().values()


def test_cluster_fields_of_an_object_are_ignored() -> None:
    added = "metadata: {name: qwen3-8b, uid: u, resourceVersion: '1', generation: 1, creationTimestamp: t, managedFields: []}"
    text = SMALLEST.replace("metadata: {name: qwen3-8b}", added) + "status: {anything: 1}\n"
    assert load_valid(text).models[0].metadata.name == "qwen3-8b"


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "message", "fix"),
    [
        ("serving.fairlead.io/v1alpha1", "serving.fairlead.io/v1", 1, "apiVersion",
         'must be "serving.fairlead.io/v1alpha1", not "serving.fairlead.io/v1"', "write `apiVersion: serving.fairlead.io/v1alpha1`"),
        ("kind: ModelDeployment", "kind: ModelDeploymnet", 2, "kind",
         'must be one of ModelDeployment, AcceleratorClass, ModelTenant, ModelRoute, ModelAdapter, not "ModelDeploymnet"',
         "did you mean ModelDeployment?"),
        ("kind: ModelDeployment\n", "", 1, "kind", "is missing", "write `kind: ModelDeployment`"),
        ("{name: qwen3-8b}", "{name: Qwen}", 3, "metadata.name", '"Qwen" is not a Kubernetes name',
         "use lower-case letters, digits, - and ., at most 63, beginning and ending with neither"),
        ("{name: qwen3-8b}", "{name: qwen3-8b, lables: {}}", 3, "metadata.lables", "unknown field", "did you mean labels?"),
        ("metadata: {name: qwen3-8b}\n", "", 1, "metadata", "is missing", "add it, for example `metadata: {name: qwen3-8b}`"),
        ("  pools: [{acceleratorClassName: nvidia-l4}]\n", "", 4, "spec.pools", "is missing",
         "add it, for example `pools: [{acceleratorClassName: nvidia-l4}]`"),
        ("[{acceleratorClassName: nvidia-l4}]", "[]", 6, "spec.pools", "must not be empty",
         "fill it, for example `pools: [{acceleratorClassName: nvidia-l4}]`"),
        ("[{acceleratorClassName: nvidia-l4}]", "{acceleratorClassName: nvidia-l4}", 6, "spec.pools", "must be a list, not a mapping",
         "write it for example `pools: [{acceleratorClassName: nvidia-l4}]`"),
        ("nvidia-l4}", "nvidia-l5}", 6, "spec.pools[0].acceleratorClassName",
         'no AcceleratorClass and no built-in one is called "nvidia-l5"', "did you mean nvidia-l4?"),
        ("nvidia-l4}", "nvidia-l4, replicas: 2}", 6, "spec.pools[0].replicas",
         "unknown field", "did you mean minReplicas?"),
        ("nvidia-l4}", "nvidia-l4, minReplicas: -1}", 6, "spec.pools[0].minReplicas", "must be at least 0, not -1",
         "write a number that is at least 0"),
        ("nvidia-l4}", "nvidia-l4, role: decode}", 6, "spec.pools[0].role",
         'must be one of Serve, Prefill, Decode, not "decode"', "did you mean Decode?"),
        ("nvidia-l4}", "nvidia-l4}, {acceleratorClassName: cpu}", 6, "spec.pools[1]",
         'the name "main" is already given in pools[0]', "give each a different name"),
        ("hf://Qwen/Qwen3-8B", "Qwen/Qwen3-8B", 5, "spec.model.uri", '"Qwen/Qwen3-8B" is not a model source',
         "begin with hf://, s3://, gs://, oci://, pvc:, file:// or openai://, such as hf://Qwen/Qwen3-8B"),
        (
            "hf://Qwen/Qwen3-8B",
            "hf://",
            5,
            "spec.model.uri",
            '"hf://" is not hf:// followed by a location',
            "write it like hf://Qwen/Qwen3-8B, s3://BUCKET/PATH, file:///PATH or pvc:CLAIM/PATH",
        ),
        ('"hf://Qwen/Qwen3-8B"', "8", 5, "spec.model.uri", "must be text, not the number 8", "put it in quotes"),
        ("  pools", "  engine: {type: vlm}\n  pools", 6, "spec.engine.type",
         'must be one of VLLM, SGLang, LlamaCpp, TRTLLM, Sim, Custom, External, OpenAI, not "vlm"', "did you mean VLLM?"),
        ("  pools", "  engine: {args: --x}\n  pools", 6, "spec.engine.args", 'must be a list, not the text "--x"',
         'write it for example `args: ["--max-model-len=32768"]`'),
        ("  pools", "  engine: {env: [{name: A}, {name: A}]}\n  pools", 6, "spec.engine.env[1]",
         'the name "A" is already given in env[0]', "give each a different name"),
        ("  pools", "  engine: {env: [{name: 1A}]}\n  pools", 6, "spec.engine.env[0].name", '"1A" has the wrong form',
         "write it for example `name: VLLM_LOGGING_LEVEL`"),
        ("  pools", "  slo: {ttft: 5sec}\n  pools", 6, "spec.slo.ttft", "'5sec' is not a duration",
         "write it like 800ms, 2s or 1m30s"),
        ("  pools", "  slo: {tpot: 40}\n  pools", 6, "spec.slo.tpot", "40 has no unit", "write 40ms or 40s"),
        ("  pools", "  slo: {target: 95}\n  pools", 6, "spec.slo.target", "must be a percentage, not the number 95",
         'write "95%"'),
        ("  pools", "  slo: {ttftPerKiloToken: 1ms}\n  pools", 6, "spec.slo.ttftPerKiloToken",
         "ttftPerKiloToken is added to ttft, which is missing", "add `ttft: 800ms`"),
        ("  pools", '  price: {input: "0.4001", output: "1"}\n  pools', 6, "spec.price.input",
         "'0.4001' is finer than 0.001 US dollars per million tokens", "round it to 0.001"),
        ("  pools", '  price: {input: "0.4", output: 1.2}\n  pools', 6, "spec.price.output",
         "must be text, not the number 1.2", 'write "1.2"'),
        ("  pools", '  price: {input: "0.4"}\n  pools', 6, "spec.price.output", "is missing",
         'add it, for example `output: "1.20"`'),
        ("  pools", '  price: {input: "0.4", cachedInput: "0.5", output: "1"}\n  pools', 6, "spec.price.cachedInput",
         "cached tokens cost more than others", "write at most the price of input"),
        ("  pools", "  bananas: 1\n  pools", 6, "spec.bananas", "unknown field",
         "remove it; known here: model, engine, replicas, pools, kvCache, adapters, slo, routing, autoscaling, rollout, "
         "price, allowedRoutes"),
        ("  pools", "  autoscaling: {mode: Off}\n  pools", 6, "spec.autoscaling.mode",
         "must be one of Auto, Advise, Disabled; YAML reads off and no without quotes as false", "write `mode: Disabled`"),
        ("  pools", "  autoscaling: {mode: on}\n  pools", 6, "spec.autoscaling.mode",
         "must be one of Auto, Advise, Disabled; YAML reads on and yes without quotes as true", "write `mode: Auto`"),
        ("  pools", "  autoscaling: {minReplicas: 1}\n  pools", 6, "spec.autoscaling.minReplicas", "unknown field",
         "write it as spec.pools[].minReplicas"),
        ("  pools", "  autoscaling: {step_up: 1}\n  pools", 6, "spec.autoscaling.step_up", "unknown field", "did you mean stepUp?"),
        ("  pools", "  autoscaling: {stepUp: 1.5}\n  pools", 6, "spec.autoscaling.stepUp",
         "must be a whole number or a percentage, not 1.5", 'write a number from 1 to 4096, or a share of the pool such as "25%"'),
        ("  pools", "  autoscaling: {mode: auto}\n  pools", 6, "spec.autoscaling.mode",
         'must be one of Auto, Advise, Disabled, not "auto"', "did you mean Auto?"),
    ],
)  # fmt: skip
def test_mistake_is_named_with_line_field_and_fix(
    old: str, new: str, line: int, field: str, message: str, fix: str
) -> None:
    assert only_problem(SMALLEST.replace(old, new, 1)) == (line, field, message, fix)


def test_accelerator_class_has_no_namespace_and_needs_a_profile() -> None:
    line, field, message, _ = only_problem(CLASS.replace("name: mine", "name: mine, namespace: x"))
    assert (line, field, message) == (
        3,
        "metadata.namespace",
        "an AcceleratorClass belongs to the cluster, not to a namespace",
    )
    line, field, message, _ = only_problem(CLASS.replace("{preset: 910b4}", "{kvTokens: 5}"))
    assert (line, field, message) == (5, "spec.profile", "a profile needs a preset or at least prefillTokenSeconds")
    line, field, message, _ = only_problem(CLASS.replace("910b4", "910b5"))
    assert (line, field, message) == (5, "spec.profile.preset", 'no engine profile is called "910b5"')


def test_all_problems_of_all_files_are_reported_at_once() -> None:
    _, problems = combine(SMALLEST.replace("spec:", "spex:"), "a:\n  ]", CLASS.replace("mine", "M"))
    assert [(problem.file, problem.line) for problem in problems] == [
        ("0.yaml", 1),
        ("0.yaml", 4),
        ("1.yaml", 2),
        ("2.yaml", 3),
    ]


def test_lines_count_across_documents() -> None:
    line, field, _, _ = only_problem(SMALLEST + "---\n" + CLASS.replace("preset", "presett"))
    assert (line, field) == (12, "spec.profile.presett")


def test_duplicate_names_are_refused_across_files() -> None:
    line, field, message, _ = only_problem(SMALLEST, SMALLEST.replace("qwen3-8b}", "qwen3-8b, namespace: default}"))
    assert (line, field) == (3, "metadata.name")
    assert message == "the ModelDeployment default/qwen3-8b is already given in 0.yaml:3"
    assert load_valid(SMALLEST, SMALLEST.replace("qwen3-8b}", "qwen3-8b, namespace: other}"))


def test_accelerator_is_not_unknown_while_a_file_is_broken() -> None:
    _, problems = combine(SMALLEST.replace("nvidia-l4", "mine"), CLASS.replace("profile", "profil"))
    assert {problem.file for problem in problems} == {"1.yaml"}


def test_non_object_document_is_refused() -> None:
    assert only_problem("- a\n")[2] == "a document must be a mapping with apiVersion, kind, metadata and spec"
    assert only_problem("")[2] == "the file is empty"


AS_STORED = {
    "apiVersion": "serving.fairlead.io/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {
        "name": "a", "namespace": "b", "uid": "1", "resourceVersion": "5", "generation": 1, "managedFields": [{}],
        "creationTimestamp": "2026-11-20T10:00:00Z", "deletionTimestamp": "2026-11-20T10:00:01Z",
        "deletionGracePeriodSeconds": 0, "finalizers": ["foregroundDeletion"], "ownerReferences": [], "selfLink": "",
        "generateName": "a-", "labels": {}, "annotations": {},
    },
    "spec": {"model": {"uri": "hf://a/b"}, "pools": [{"name": "main", "acceleratorClassName": "cpu"}]},
    "status": {"observedGeneration": 1, "conditions": []},
}  # fmt: skip


def test_stored_object_is_read_with_server_fields() -> None:
    deployment = read_object(AS_STORED)
    assert isinstance(deployment, ModelDeployment)
    assert (deployment.key, deployment.spec.pools[0].accelerator_class_name) == ("b/a", "cpu")


def test_stored_object_of_another_release_is_refused_with_all_problems() -> None:
    spec = {
        "model": {"uri": "hf://a/b"},
        "pools": [{"name": "main", "acceleratorClassName": "cpu", "new": 1}],
        "newer": {},
    }
    with pytest.raises(BadInput) as refused:
        read_object({**AS_STORED, "spec": spec})
    assert refused.value.field == "spec.pools[0].new"
    assert refused.value.message.startswith("spec.pools[0].new: unknown field (")
    assert "; spec.newer: unknown field (" in refused.value.message


def test_files_folders_and_stdin_are_read(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(SMALLEST)
    (tmp_path / "a.yml").write_text(CLASS)
    (tmp_path / "notes.txt").write_text("not: [yaml")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.yaml").write_text("not: [yaml")
    assert [model.metadata.name for model in load_manifests([tmp_path]).models] == ["qwen3-8b"]
    stdin = io.BytesIO(SMALLEST.replace("qwen3-8b", "other").encode())
    both: list[ModelDeployment] = list(load_manifests([tmp_path / "b.yaml", "-"], stdin=stdin).models)
    assert [model.metadata.name for model in both] == ["qwen3-8b", "other"]


def test_files_of_a_folder_without_an_object_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(SMALLEST)
    (tmp_path / "values.yaml").write_text("replicaCount: 1\n")
    manifests = load_manifests([tmp_path])
    assert [model.metadata.name for model in manifests.models] == ["qwen3-8b"]
    assert [Path(skipped.file).name for skipped in manifests.skipped] == ["values.yaml"]
    with pytest.raises(ManifestError, match=r"values.yaml:1: apiVersion: is missing"):
        load_manifests([tmp_path / "model.yaml", tmp_path / "values.yaml"])


def test_unreadable_file_is_a_problem_of_that_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "only.yaml").write_text(CLASS)
    for path, message in (
        (tmp_path / "missing.yaml", "cannot be read: No such file or directory"),
        (tmp_path / "empty", "the folder has no .yaml or .yml file"),
        (tmp_path / "only.yaml", "there is no ModelDeployment"),
    ):
        with pytest.raises(ManifestError) as caught:
            load_manifests([path])
        assert [problem.message for problem in caught.value.problems] == [message]


@pytest.mark.parametrize("preset_name", [known.value for known in RoutingPreset])
def test_every_routing_preset_is_accepted(preset_name: str) -> None:
    (deployment,) = load_valid(SMALLEST + f"  routing: {{preset: {preset_name}}}\n").models
    router = ModelRouter(secret=b"s")
    router.update(to_fleet_model(deployment), [Instance("a/1/0", "default", "qwen3-8b", "main", "http://a:1")])
    request = RouteRequest("r", prefix_chain(b"hello", secret=b"s", seed=b""), 2.0)
    assert router.choose_instance(request, 0.0).chosen == "a/1/0"


def test_models_of_a_cut_over_get_their_names_in_its_order() -> None:
    external = """
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: llama-external}
spec:
  model: {uri: "hf://a/b", servedNames: [llama, a/b]}
  engine: {type: External}
  pools: [{name: main, selector: {matchLabels: {app: llama}}}]
"""
    converted = """
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: llama}
spec:
  model: {uri: "hf://a/b", servedNames: [a/b]}
  pools: [{acceleratorClassName: nvidia-l4}]
"""
    notes = [note for note in load_valid(converted, external).notes if "servedNames" in note.field]
    [note] = notes
    assert (note.file, note.message.rpartition(" by ")[2]) == ("0.yaml", "a/b: default/llama-external has it")
    assert "fairlead.io/release-names" in note.fix
    other = external.replace("llama-external", "other")
    assert {note.fix for note in load_valid(converted, other).notes if "servedNames" in note.field} == {
        "remove it, or rename one"
    }


def test_one_round_names_the_problems_of_all_layers() -> None:
    text = SMALLEST.replace(
        "[{acceleratorClassName: nvidia-l4}]",
        "[{acceleratorClassName: h100, minReplicas: 3, maxReplicas: 2, tensorParallelSize: 4}]\n  slo: {ttft: 2}",
    )
    _, problems = combine(text)
    assert [(problem.field, problem.fix) for problem in problems] == [
        ("spec.pools[0].tensorParallelSize", "write it as spec.pools[].parallelism.tensor"),
        ("spec.pools[0].maxReplicas", "raise maxReplicas, or lower minReplicas"),
        ("spec.pools[0].acceleratorClassName", "did you mean nvidia-h100?"),
        ("spec.slo.ttft", "write 2ms or 2s"),
    ]


def test_a_rule_about_a_field_that_is_wrong_itself_is_not_checked() -> None:
    text = SMALLEST.replace("nvidia-l4}", 'nvidia-l4, minReplicas: 3, maxReplicas: "2"}')
    assert only_problem(text)[1] == "spec.pools[0].maxReplicas"
    text = SMALLEST.replace("nvidia-l4}", "nvidia-l4, minReplicas: 3, maxReplica: 2}")
    assert only_problem(text)[1] == "spec.pools[0].maxReplica"


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("gpus", "write it as spec.pools[].parallelism.tensor"),
        ("tensor_parallel_size", "write it as spec.pools[].parallelism.tensor"),
        ("storageUri", "write it as spec.model.uri"),
        ("resourceProfile", "write it as spec.pools[].acceleratorClassName"),
        ("maxModelLen", 'write it as spec.engine.args: ["--max-model-len=…"]'),
        ("gpu-memory-utilization", 'write it as spec.engine.args: ["--gpu-memory-utilization=…"]'),
    ],
)
def test_words_of_other_systems_get_their_place_as_the_fix(name: str, fix: str) -> None:
    assert only_problem(SMALLEST.replace("nvidia-l4}", f"nvidia-l4, {name}: 1}}"))[3] == fix


def test_every_place_of_a_foreign_word_is_a_field() -> None:
    for place in _WORDS.values():
        steps = place.partition(",")[0].replace("[]", "").split(".")
        if "template" in steps:
            steps = steps[: steps.index("template") + 1]
        path = tuple(steps)
        assert field_at(ModelDeployment, path)[1] is not None, place

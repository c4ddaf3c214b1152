"""Plain workloads with vLLM or SGLang, and what the reader of pods keeps for every system."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead.errors import BadInput
from fairlead.manifests.loader import read_object
from fairlead_cli.manifest_conversion import Migration, migrate, system_of
from fairlead_cli.migration import pod_spec
from fairlead_cli.migration.drafts import MigrationOptions
from fairlead_cli.migration.field_reader import Outcome
from fairlead_operator.render import pod_template
from fairlead_testing.cli.command_line import run_command_line
from fairlead_testing.yaml_documents import load_document

POD = """
nodeSelector: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}
containers:
- name: vllm
  image: vllm/vllm-openai:v0.32.0
  command: [vllm, serve, Qwen/Qwen3-8B, --served-model-name, house]
  ports: [{name: http, containerPort: 8200}]
  resources: {limits: {nvidia.com/gpu: "1"}}
"""
KINDS = {
    "Deployment": ("apps/v1", "{replicas: 2, selector: {matchLabels: {app: x}}, template: {spec: POD}}"),
    "StatefulSet": ("apps/v1", "{replicas: 2, selector: {matchLabels: {app: x}}, template: {spec: POD}}"),
    "LeaderWorkerSet": (
        "leaderworkerset.x-k8s.io/v1",
        "{replicas: 2, leaderWorkerTemplate: {size: 2, leaderTemplate: {spec: POD}, workerTemplate: {spec: POD}}}",
    ),
    "ModelServing": (
        "workload.serving.volcano.sh/v1alpha1",
        "{replicas: 2, template: {roles: [{name: a, replicas: 1, workerReplicas: 1, entryTemplate: {spec: POD}}]}}",
    ),
}


def pod(**changed: Any) -> dict[str, Any]:
    """Returns a pod; fields with the names of a container's are set in its container."""
    spec: dict[str, Any] = load_document(POD)
    container = spec["containers"][0]
    for name, value in changed.items():
        (container if name in ("image", "command", "args", "env", "resources") or "Probe" in name else spec)[name] = (
            value
        )
    if "mounts" in spec:
        container["volumeMounts"] = spec.pop("mounts")
    return spec


def workload(spec: dict[str, Any] | None = None, kind: str = "Deployment", **metadata: Any) -> dict[str, Any]:
    version, text = KINDS[kind]
    filled = _fill(load_document(text), pod() if spec is None else spec)
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "house"} | metadata, "spec": filled}


def _fill(value: Any, spec: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {name: _fill(item, spec) for name, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, spec) for item in value]
    return spec if value == "POD" else value


def convert(*documents: dict[str, Any], accelerator: str | None = None, external: bool = False) -> Migration:
    return migrate([("f.yaml", document) for document in documents], MigrationOptions(accelerator, external))


def spec_of(migration: Migration) -> dict[str, Any]:
    (manifest,) = migration.manifests
    read_object(manifest)
    spec: dict[str, Any] = manifest["spec"]
    return spec


def said(migration: Migration) -> str:
    return "\n".join(note.describe() for note in migration.notes)


def engine_of(spec: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = spec["pools"][0]["template"]["spec"]["containers"][0]
    return container


@pytest.mark.parametrize("kind", KINDS)
def test_workload_becomes_a_model(kind: str) -> None:
    spec = spec_of(convert(workload(pod(command=["vllm", "serve", "a/b", "-tp", "2"]), kind)))
    (pool,) = spec["pools"]
    assert (spec["model"]["uri"], pool["minReplicas"]) == ("hf://a/b", 2)
    several = kind in ("LeaderWorkerSet", "ModelServing")
    assert pool["parallelism"] == {"tensor": 2} | ({"nodes": 2} if several else {})
    outside = spec_of(convert(workload(kind=kind), external=True))
    assert outside["pools"][0]["selector"]["port"] == 8200


def test_modelserving_with_several_roles_is_refused_by_name() -> None:
    document = workload(kind="ModelServing")
    roles = document["spec"]["template"]["roles"]
    document["spec"]["template"]["roles"] = [roles[0], {**roles[0], "name": "b"}]
    with pytest.raises(BadInput, match="there are the roles a, b"):
        convert(document)


@pytest.mark.parametrize(
    ("container", "known"),
    [
        ({"image": "vllm/vllm-openai:v0.32.0", "args": ["--model", "a"]}, True),
        ({"image": "ghcr.io/llm-d/llm-d-cuda:v0.9.0", "args": ["--model", "a"]}, True),
        ({"image": "me/mine:1", "command": ["sh", "-c", "exec python3 -m sglang.launch_server --model a"]}, True),
        ({"image": "me/mine:1", "command": ["sh", "-c", "exec vllm serve a --tp $(nproc)"]}, True),
        ({"image": "ghcr.io/llm-d/llm-d-routing-sidecar:1", "args": ["--connector=nixlv2"]}, False),
        ({"image": "lmcache/lmstack-router:1", "args": ["--routing-logic", "session"]}, False),
        ({"image": "nginx:1", "command": ["nginx"]}, False),
        ({"image": "vllm/vllm-openai:v0.32.0", "command": ["python3", "-m", "http.server"]}, False),
    ],
)
def test_workload_is_known_by_its_command_or_image(container: dict[str, Any], known: bool) -> None:
    document = workload({"containers": [{"name": "a"} | container]})
    assert (system_of(document) is not None) == known


def test_prefill_and_decode_of_llm_d_become_pools() -> None:
    documents = []
    for role in ("decode", "prefill"):
        transfer = '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'
        spec = pod(command=["vllm", "serve", "a/b", "--kv-transfer-config", transfer])
        spec["initContainers"] = [{"name": "proxy", "image": "ghcr.io/llm-d/llm-d-routing-sidecar:1"}]
        document = workload(spec, name=f"house-{role}")
        document["spec"]["template"]["metadata"] = {"labels": {"llm-d.ai/role": role, "app": "x"}}
        documents.append(document)
    migration = convert(*reversed(documents))
    spec = spec_of(migration)
    assert [(pool["name"], pool["role"]) for pool in spec["pools"]] == [("decode", "Decode"), ("prefill", "Prefill")]
    assert (migration.manifests[0]["metadata"]["name"], spec["kvCache"]) == ("house", {"transfer": "NIXL"})
    assert "initContainers" not in str(spec)
    assert "initContainers[0]: not carried over: Fairlead's gateway sends prompts" in said(migration)
    with pytest.raises(BadInput, match="there is no decode model with the weights of house-prefill"):
        convert(documents[1])


def claim_pod(*words: str, **changed: Any) -> dict[str, Any]:
    return pod(
        command=["vllm", "serve", "/weights/house", *words],
        mounts=[{"name": "w", "mountPath": "/weights"}],
        volumes=[{"name": "w", "persistentVolumeClaim": {"claimName": "disk"}}],
        **changed,
    )


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        (claim_pod(), False),
        (claim_pod("--max-model-len", "4096"), False),
        (claim_pod("--chat-template", "/weights/t.jinja"), True),
        (claim_pod('--speculative-config={"model":"/weights/draft"}'), True),
        (claim_pod(env=[{"name": "LOGGING", "value": "/weights/log.json"}]), True),
        (
            claim_pod(initContainers=[{"name": "i", "image": "i", "volumeMounts": [{"name": "w", "mountPath": "/m"}]}]),
            True,
        ),
    ],
)
def test_claim_stays_mounted_while_something_else_is_on_it(spec: dict[str, Any], kept: bool) -> None:
    converted = spec_of(convert(workload(spec)))
    assert converted["model"]["uri"] == "pvc:disk/house"
    assert ("volumes" in converted["pools"][0].get("template", {}).get("spec", {})) == kept


@pytest.mark.parametrize(
    ("resource", "product"),
    [
        ("nvidia.com/mig-1g.10gb", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"),
        ("nvidia.com/gpu", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"),
        ("nvidia.com/gpu.shared", "NVIDIA-H100-80GB-HBM3"),
        ("nvidia.com/gpumem", "NVIDIA-H100-80GB-HBM3"),
        ("amd.com/gpu", "NVIDIA-H100-80GB-HBM3"),
    ],
)
def test_part_of_a_device_and_other_devices_are_asked_for(resource: str, product: str) -> None:
    spec = pod(nodeSelector={"nvidia.com/gpu.product": product}, resources={"limits": {resource: "1"}})
    with pytest.raises(BadInput, match=r"no built-in AcceleratorClass is for|a pod gets a part of a device"):
        convert(workload(spec))
    migration = convert(workload(spec), accelerator="nvidia-h100")
    noted = [note for note in migration.notes if "see that the class nvidia-h100 has the resource" in note.reason]
    assert [note.outcome for note in noted] == [Outcome.REQUIRED]


def test_device_that_pods_share_by_time_is_noted() -> None:
    migration = convert(workload(pod(nodeSelector={"nvidia.com/gpu.product": "NVIDIA-L4-SHARED"})))
    assert spec_of(migration)["pools"][0]["acceleratorClassName"] == "nvidia-l4"
    assert "NVIDIA-L4-SHARED; its profile is that of a whole device, which several pods share" in said(migration)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nodeSelector": {"kubernetes.io/hostname": "rack-h100-07"}}, "does not say which accelerator"),
        ({"nodeSelector": {"topology.kubernetes.io/zone": "a100"}}, "does not say which accelerator"),
        (
            {"resources": {}, "nodeSelector": {}, "runtimeClassName": "nvidia"},
            "no device, but has runtimeClassName nvidia",
        ),
        (
            {"resources": {"claims": [{"name": "gpu"}]}, "nodeSelector": {}, "resourceClaims": [{"name": "gpu"}]},
            "no device, but has resourceClaims, resources.claims",
        ),
        (
            {"resources": {}, "nodeSelector": {}, "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "0"}]},
            "no device, but has NVIDIA_VISIBLE_DEVICES",
        ),
    ],
)
def test_class_is_not_guessed_from_what_names_no_device(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        convert(workload(pod(**changed)))


@pytest.mark.parametrize(("image", "noted"), [("vllm/vllm-openai:v0.32.0", True), ("me/vllm-cpu:v0.32.0", False)])
def test_class_cpu_names_itself_as_a_guess(image: str, noted: bool) -> None:
    migration = convert(workload(pod(resources={}, nodeSelector={}, image=image)))
    assert spec_of(migration)["pools"][0]["acceleratorClassName"] == "cpu"
    assert ("the manifest requests no device, so the pool is on class cpu" in said(migration)) == noted


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("--max-model-len ${MAX_LEN:-32768}", r"\$\{MAX_LEN:-32768\}"),
        ("-tp $(nvidia-smi -L | wc -l)", r"\$\(nvidia-smi -L \| wc -l\)"),
        ("-tp `nproc`", "`nproc`"),
        ("-tp $(nproc)", r"computes \$\(nproc\)"),
        ("-tp $$(nproc)", r"computes \$\$\(nproc\)"),
        ("--data-parallel-size=$((LWS_GROUP_SIZE * 8))", r"\$\(\(LWS_GROUP_SIZE \* 8\)\)"),
        ("--max-model-len $LENGTH", r"\$LENGTH itself"),
    ],
)
def test_text_for_the_shell_does_not_reach_the_engine(word: str, named: str) -> None:
    script = f"# it's how we start\nexport LENGTH=$(cat /etc/length)\nexec vllm serve a/b \\\n  {word}"
    with pytest.raises(BadInput, match=named):
        convert(workload(pod(command=["bash", "-c", script])))


def test_variables_of_the_pod_and_commands_beside_the_engine_are_no_obstacle() -> None:
    script = "export A=$(nproc) # don't\nexec vllm serve a/b --max-model-len $LENGTH --seed $(SEED)"
    env = [{"name": "LENGTH", "value": "4096"}, {"name": "SEED", "value": "1"}]
    spec = spec_of(convert(workload(pod(command=["bash", "-c", script], env=env))))
    assert spec["engine"]["args"] == ["--max-model-len", "4096", "--seed", "1"]


def test_model_in_a_variable_is_found() -> None:
    reference = {"name": "PLACE", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    env = [{"name": "MODEL", "value": "Qwen/Qwen3-8B"}, reference]
    command = [
        "vllm",
        "serve",
        "$(MODEL)",
        "--served-model-name=x-$(MODEL)",
        "--otlp-traces-endpoint=$(PLACE)",
        "--seed=$$(MODEL)",
    ]
    spec = spec_of(convert(workload(pod(command=command, env=env))))
    assert spec["model"] == {"uri": "hf://Qwen/Qwen3-8B", "servedNames": ["x-Qwen/Qwen3-8B"]}
    assert spec["engine"]["args"] == ["--otlp-traces-endpoint=$(PLACE)", "--seed=$$(MODEL)"]


@pytest.mark.parametrize(
    ("probes", "seconds"),
    [
        ({"startupProbe": {"periodSeconds": 30, "failureThreshold": 240}}, 7200),
        ({"startupProbe": {"initialDelaySeconds": 3000, "failureThreshold": 60}}, 3600),
        ({"livenessProbe": {"initialDelaySeconds": 3600}}, 3630),
        (
            {"startupProbe": {"periodSeconds": 10, "failureThreshold": 60}, "livenessProbe": {"periodSeconds": 9999}},
            None,
        ),
        ({"readinessProbe": {"periodSeconds": 9999}}, None),
    ],
)
def test_longer_start_is_carried_over(probes: dict[str, Any], seconds: int | None) -> None:
    migration = convert(workload(pod(**probes)))
    containers = spec_of(migration)["pools"][0]["template"]["spec"].get("containers", [{}])
    probe = containers[0].get("startupProbe")
    assert (probe is None) == (seconds is None)
    if probe is not None:
        assert probe["periodSeconds"] * probe["failureThreshold"] == seconds
        assert f"gives engines {seconds} s to start, as before" in said(migration)


@pytest.mark.parametrize(("size", "kept"), [("64Gi", True), ("16Gi", False), ("2Gi", False), (None, False)])
def test_greater_shared_memory_is_carried_over(size: str | None, kept: bool) -> None:
    source = {"medium": "Memory"} | ({"sizeLimit": size} if size else {})
    spec = pod(mounts=[{"name": "shm", "mountPath": "/dev/shm"}], volumes=[{"name": "shm", "emptyDir": source}])
    volumes = spec_of(convert(workload(spec)))["pools"][0]["template"]["spec"].get("volumes", [])
    assert volumes == ([{"name": "shared-memory", "emptyDir": source}] if kept else [])


@pytest.mark.parametrize(
    ("image", "word", "kept"),
    [
        ("", "--disable-log-requests", []),
        ("vllm/vllm-openai:v0.32.0", "--num-scheduler-steps=10", []),
        ("", "--enable-chunked-prefill=false", ["--no-enable-chunked-prefill"]),
        ("", "--enable-chunked-prefill=True", ["--enable-chunked-prefill"]),
        ("vllm/vllm-openai:v0.11.0", "--disable-log-requests", ["--disable-log-requests"]),
        ("me/mine:1", "--disable-log-requests", ["--disable-log-requests"]),
    ],
)
def test_flag_that_the_engine_no_longer_takes_is_dropped(image: str, word: str, kept: list[str]) -> None:
    migration = convert(workload(pod(image=image, command=["vllm", "serve", "a/b", word])))
    assert spec_of(migration)["engine"].get("args", []) == kept
    assert ("has no flag" in said(migration)) == (not kept)


def connector(*parts: str) -> str:
    sizes = '"kv_connector_extra_config":{"cpu_bytes_to_use":1073741824}'
    inner = ",".join(f'{{"kv_connector":"{name}",{sizes}}}' for name in parts)
    several = f'{{"kv_connector":"MultiConnector","kv_connector_extra_config":{{"connectors":[{inner}]}}}}'
    return f"--kv-transfer-config={several}"


def storm(*decode: str) -> dict[str, Any]:
    roles = []
    for name, words in (("prefill", decode), ("decode", decode)):
        spec = pod(command=["vllm", "serve", "a/b", *words])
        roles.append({"name": name, "replicas": 1, "template": {"spec": spec}})
    body = {"replicas": 1, "template": {"spec": {"roles": roles}}}
    head = {"apiVersion": "orchestration.aibrix.ai/v1alpha1", "kind": "StormService", "metadata": {"name": "house"}}
    return {**head, "spec": body}


def test_several_connectors_become_transfer_and_offload() -> None:
    spec = spec_of(convert(storm(connector("NixlConnector", "OffloadingConnector"))))
    assert spec["kvCache"] == {"offload": {"type": "Native", "memory": "1Gi"}, "transfer": "NIXL"}
    assert "args" not in spec["engine"]
    alone = spec_of(convert(workload(pod(command=["vllm", "serve", "a/b", connector("NixlConnector")]))))
    assert alone["engine"]["args"] == [connector("NixlConnector")]
    assert "kvCache" not in alone


@pytest.mark.parametrize(
    "word", [connector("NixlConnector", "MyConnector"), '--kv-transfer-config={"kv_connector":"Mine"}']
)
def test_connector_that_a_model_cannot_say_is_refused(word: str) -> None:
    with pytest.raises(BadInput, match="cannot say the connectors of --kv-transfer-config"):
        convert(storm(word))
    assert spec_of(convert(workload(pod(command=["vllm", "serve", "a/b", word]))))["engine"]["args"] == [word]


def test_account_of_a_pod_is_kept_and_what_it_needs_is_noted() -> None:
    converted = convert(workload(pod(serviceAccountName="reader")))
    (pool,) = spec_of(converted)["pools"]
    assert pool["template"]["spec"]["serviceAccountName"] == "reader"
    assert "operator.serviceAccounts" in said(converted)
    assert "operator.serviceAccounts" not in said(convert(workload()))


def test_times_and_sizes_are_compared_with_those_of_the_operator() -> None:
    assert (pod_spec.START_SECONDS, pod_spec.SHARED_MEMORY_SIZE) == (
        pod_template._START_SECONDS,
        pod_template._SHARED_MEMORY_SIZE,
    )


DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {{name: chat, labels: {labels}}}
spec:
  selector: {{matchLabels: {{app: chat}}}}
  template:
    metadata: {{labels: {{app: chat}}}}
    spec:
      containers:
        - {{name: web, image: "ghcr.io/open-webui/open-webui:main"}}
        - {{name: main, image: "{image}", command: {command}, env: [{{name: OLLAMA_KEEP_ALIVE, value: 24h}}]}}
"""
SERVICE = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: chat}}
spec: {{predictor: {{containers: [{{name: kserve-container, image: "{image}"}}]}}}}
"""
AIBRIX = "{model.aibrix.ai/name: chat}"
BY_HAND = "keep it, and write a ModelDeployment with `engine.type: External` that leads to it"


def texts_of(file: Path, text: str, *options: str) -> str:
    file.write_text(text)
    done = run_command_line("convert", *options, "--accelerator", "nvidia-l4", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


@pytest.mark.parametrize(
    ("image", "command", "reason"),
    [
        ("ollama/ollama:0.6.2", "[]", f"Fairlead does not run Ollama: {BY_HAND}"),
        ("registry.example/mirror/ollama@sha256:00", "[]", "does not run Ollama"),
        ("ghcr.io/huggingface/text-generation-inference:3.0", "[]", f"does not run TGI: {BY_HAND}"),
        ("quay.io/go-skynet/local-ai:v2", "[]", "does not run LocalAI"),
        (
            "ghcr.io/ggml-org/llama.cpp:server-cuda",
            "[]",
            "reads no command line of llama.cpp: write a ModelDeployment ",
        ),
        ("me/mine:1", "[/app/llama-server, -m, /m.gguf]", "with `engine.type: LlamaCpp`"),
        ("nvcr.io/nvidia/tensorrt-llm/release:1.0", "[trtllm-serve, serve, a/b]", "with `engine.type: TRTLLM`"),
    ],
)
def test_engine_of_a_workload_is_named(tmp_path: Path, image: str, command: str, reason: str) -> None:
    texts = texts_of(tmp_path / "a.yaml", DEPLOYMENT.format(image=image, command=command, labels="{}"))
    assert "Deployment chat: not converted: " in texts
    assert reason in texts
    assert "apply it as before" not in texts


@pytest.mark.parametrize("options", [(), ("--external",)])
@pytest.mark.parametrize(
    "text",
    [SERVICE, DEPLOYMENT.replace("{command}", "[]").replace("{labels}", AIBRIX.replace("{", "{{").replace("}", "}}"))],
)
def test_engine_of_another_system_is_named(tmp_path: Path, text: str, options: tuple[str, ...]) -> None:
    texts = texts_of(tmp_path / "a.yaml", text.format(image="ollama/ollama:0.6"), *options)
    assert f"Fairlead does not run Ollama ({BY_HAND})" in texts


@pytest.mark.parametrize("image", ["postgres:17", "me/ollama-webui:1", "me/prometheus-ollama-exporter:1"])
def test_other_workloads_stay_as_they_are(tmp_path: Path, image: str) -> None:
    texts = texts_of(tmp_path / "a.yaml", DEPLOYMENT.format(image=image, command="[]", labels="{}"))
    assert "it stays as it is: apply it as before" in texts


def scaler(kind: str, name: str = "house", **spec: Any) -> dict[str, Any]:
    version = "keda.sh/v1alpha1" if kind == "ScaledObject" else "autoscaling/v2"
    target = {"scaleTargetRef": {"name": name, "kind": "Deployment"}, **spec}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": target}


@pytest.mark.parametrize(
    ("kind", "fields", "bounds"),
    [
        ("ScaledObject", {"minReplicaCount": 2, "maxReplicaCount": 6}, (2, 6)),
        ("ScaledObject", {"maxReplicaCount": 6}, (0, 6)),
        ("ScaledObject", {"minReplicaCount": 2, "idleReplicaCount": 0, "maxReplicaCount": 6}, (0, 6)),
        ("ScaledObject", {}, (0, 100)),
        ("HorizontalPodAutoscaler", {"minReplicas": 3, "maxReplicas": 9}, (3, 9)),
        ("HorizontalPodAutoscaler", {"maxReplicas": 9}, (1, 9)),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_autoscaler_beside_a_workload_gives_its_bounds(
    tmp_path: Path, kind: str, fields: dict[str, int], bounds: tuple[int, int], order: int
) -> None:
    stopped = workload()
    stopped["spec"]["replicas"] = 0  # exported while it slept
    documents = [stopped, scaler(kind, **fields, triggers=[{"type": "cpu"}])][::order]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all(documents))
    done = run_command_line("convert", str(tmp_path / "a.yaml"))
    assert done.returncode == 0, done.stderr
    spec = load_document(done.stdout)["spec"]
    assert (spec["pools"][0]["minReplicas"], spec["pools"][0]["maxReplicas"]) == bounds
    assert spec["autoscaling"]["mode"] == "Auto"
    assert "spec.triggers: not carried over: Fairlead scales for latency targets" in done.stderr


def test_autoscaler_of_another_workload_is_noted_with_its_bounds(tmp_path: Path) -> None:
    other = scaler("HorizontalPodAutoscaler", "another", minReplicas=2, maxReplicas=7)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([workload(), other]))
    done = run_command_line("convert", str(tmp_path / "a.yaml"))
    assert "its bounds are minReplicas: 2 and maxReplicas: 7; it serves the old engines" in done.stderr


def test_workload_that_was_exported_at_zero_is_noted(tmp_path: Path) -> None:
    stopped = workload()
    stopped["spec"]["replicas"] = 0
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(stopped))
    done = run_command_line("convert", str(tmp_path / "a.yaml"))
    assert "before you apply the output: no instance runs, and a request starts none" in done.stderr


@pytest.mark.parametrize(
    ("kind", "version"),
    [("DaemonSet", "apps/v1"), ("Rollout", "argoproj.io/v1alpha1"), ("ReplicaSet", "apps/v1"), ("Pod", "v1")],
)
def test_kind_that_is_not_read_ends_the_conversion_if_it_runs_an_engine(
    tmp_path: Path, kind: str, version: str
) -> None:
    spec = pod() if kind == "Pod" else {"template": {"spec": pod()}}
    other = {"apiVersion": version, "kind": kind, "metadata": {"name": "each-node"}, "spec": spec}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([workload(), other]))
    done = run_command_line("convert", str(tmp_path / "a.yaml"))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{kind} each-node: not converted: convert reads no {kind}, only Deployment, StatefulSet" in done.stderr
    assert "nothing is written while a model is left out" in done.stderr


STACK = {
    "servingEngineSpec": {
        "modelSpec": [{"name": "chat", "repository": "a/vllm", "tag": "v0.32.0", "modelURL": "a/b", "replicaCount": 1}]
    }
}
FLUX = ("helm.toolkit.fluxcd.io/v2", "HelmRelease")
ARGO = ("argoproj.io/v1alpha1", "Application")


@pytest.mark.parametrize(
    ("head", "spec", "is_converted"),
    [
        (FLUX, {"values": STACK}, True),
        (ARGO, {"source": {"helm": {"valuesObject": STACK}}}, True),
        (ARGO, {"source": {"helm": {"values": yaml.safe_dump(STACK)}}}, True),
        (ARGO, {"sources": [{"ref": "values"}, {"helm": {"valuesObject": STACK}}]}, True),
        (FLUX, {"valuesFrom": [{"kind": "ConfigMap", "name": "x"}]}, False),
        (ARGO, {"source": {"helm": {"valueFiles": ["x.yaml"]}}}, False),
    ],
)
def test_values_of_a_chart_that_flux_or_argo_cd_installs_are_read(
    tmp_path: Path, head: tuple[str, str], spec: dict[str, Any], is_converted: bool
) -> None:
    document = {"apiVersion": head[0], "kind": head[1], "metadata": {"name": "llm"}, "spec": spec}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(document))
    done = run_command_line("convert", "--accelerator", "nvidia-l4", str(tmp_path / "a.yaml"))
    assert (done.returncode == 0) == is_converted, done.stderr
    if is_converted:
        assert load_document(done.stdout)["metadata"]["name"] == "chat"
        assert f"a.yaml: {head[1]} llm: " in done.stderr
    else:
        assert "give its values as a file" in done.stderr


@pytest.mark.parametrize("name", ["POD_IP", "VLLM_HOST_IP", "PYTHONHASHSEED"])
@pytest.mark.parametrize("is_used", [True, False])
def test_variable_of_ours_stays_only_if_another_value_refers_to_it(name: str, is_used: bool) -> None:
    env = [{"name": name, "value": "1"}, {"name": "OTHER", "value": f"$({name})" if is_used else "x"}]
    spec = spec_of(convert(workload(pod(env=env))))
    assert (name in [variable["name"] for variable in spec["engine"]["env"]]) == is_used


@pytest.mark.parametrize(
    "command",
    [
        ["sh", "-c", "A=1 B=$C vllm serve a/b"],
        ["env", "A=1", "B=$(C)", "vllm", "serve", "a/b"],
    ],
)
def test_variables_before_the_command_are_carried_over(command: list[str]) -> None:
    spec = spec_of(convert(workload(pod(command=command, env=[{"name": "C", "value": "2"}]))))
    found = {variable["name"]: variable["value"] for variable in spec["engine"]["env"]}
    assert found == {"A": "1", "B": "$(C)", "C": "2"}


def test_claims_of_a_statefulset_become_volumes_of_the_pods() -> None:
    document = workload(pod(mounts=[{"name": "disk", "mountPath": "/cache"}]), "StatefulSet")
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "9Gi"}}}
    document["spec"]["volumeClaimTemplates"] = [{"metadata": {"name": "disk"}, "spec": claim}]
    migration = convert(document)
    (volume,) = spec_of(migration)["pools"][0]["template"]["spec"]["volumes"]
    assert volume == {"name": "disk", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    assert "which ends with the pod: its files are loaded again" in said(migration)


@pytest.mark.parametrize("writer", [True, False])
def test_weights_that_an_init_container_of_the_user_fills_are_read_there(writer: bool) -> None:
    mount = {"name": "w", "mountPath": "/mnt/models"}
    spec = pod(volumes=[{"name": "w", "emptyDir": {}}], mounts=[mount] if writer else [])
    spec["containers"][0] |= {"name": "main"}
    spec["initContainers"] = [{"name": "fetch", "image": "a", "volumeMounts": [mount]}]
    document = {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": {"name": "x"},
        "spec": {
            "model": {"uri": "hf://a/b:rev"},
            "storageInitializer": {"enabled": False},
            "template": spec,
        },
    }
    migration = convert(document)
    model = spec_of(migration)["model"]
    assert model["uri"] == ("file:///mnt/models" if writer else "hf://a/b")
    assert ("revision" in model) != writer
    assert ("which the init container fetch fills: nothing is downloaded twice" in said(migration)) == writer


SIDECARS = (
    ("kthena/runtime:latest", ["--port", "8100", "--engine", "vllm", "--model", "house"], False),
    ("aibrix/runtime:v0.5.0", ["--engine", "vllm"], False),
    ("registry.example.com/metrics:1", ["--scrape", "vllm"], True),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("image", "arguments", "kept"), SIDECARS)
def test_container_that_mentions_an_engine_does_not_stand_for_the_one_that_runs_it(
    image: str, arguments: list[str], kept: bool, first: bool, kind: str
) -> None:
    spec = pod(command=["vllm", "serve", "a/b", "-tp", "2"])
    spec["containers"].insert(0 if first else 1, {"name": "beside", "image": image, "args": arguments})
    found = spec_of(convert(workload(spec, kind)))
    assert (found["engine"]["image"], found["model"]["uri"]) == ("vllm/vllm-openai:v0.32.0", "hf://a/b")
    template = found["pools"][0].get("template", {}).get("spec", {})
    assert ("beside" in [container["name"] for container in template.get("containers", [])]) == kept


@pytest.mark.parametrize("has_claim", [False, True])
@pytest.mark.parametrize("strategy", ["Recreate", "RollingUpdate", None])
def test_recreate_with_a_claim_says_what_the_new_pod_cannot_mount(strategy: str | None, *, has_claim: bool) -> None:
    volume = {"persistentVolumeClaim": {"claimName": "c"}} if has_claim else {"emptyDir": {}}
    spec = pod(volumes=[{"name": "data", **volume}], mounts=[{"name": "data", "mountPath": "/data"}])
    document = workload(spec)
    document["spec"]["strategy"] = None if strategy is None else {"type": strategy}
    reasons = [note.reason for note in convert(document).notes if note.field == "spec.strategy"]
    assert bool(reasons) is (strategy is not None)
    assert any("ReadWriteOnce" in reason for reason in reasons) is (has_claim and strategy == "Recreate")


@pytest.mark.parametrize("memory", [{"medium": "Memory"}, {}, {"medium": "Memory", "sizeLimit": "8Gi"}])
def test_shared_memory_without_a_size_is_noted(memory: dict[str, str]) -> None:
    volumes = [{"name": "shm", "emptyDir": memory}]
    migration = convert(workload(pod(volumes=volumes, mounts=[{"name": "shm", "mountPath": "/dev/shm"}])))
    noted = [note.reason for note in migration.notes if "without a size becomes 16Gi" in note.reason]
    assert bool(noted) is ("sizeLimit" not in memory)

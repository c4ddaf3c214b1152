"""Random manifests in the shapes of the systems that `fairlead convert` reads.

An API server takes every pod. They have what such pods usually have:

- claims and caches at usual places, and names that Fairlead's pods have, too;
- variables that refer to each other, and selectors of the pods' own labels;
- raised rights, and limits without requests.
"""

from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final

LABELS: Final = {"app": "source", "tier": "gpu"}
_VOLUMES: Final = ("tmp", "cache", "home", "model", "shared-memory", "data", "weights")
_PLACES: Final = ("/root/.cache/huggingface", "/root/.cache", "/data", "/models", "/mnt/models", "/dev/shm", "/tmp")
_NAMES: Final = ("engine", "helper", "adapter-downloader")
_SOURCES: Final[tuple[Callable[[str], dict[str, Any]], ...]] = (
    lambda name: {"emptyDir": {}},
    lambda name: {"persistentVolumeClaim": {"claimName": f"{name}-claim"}},
    lambda name: {"hostPath": {"path": "/mnt"}},
    lambda name: {"configMap": {"name": name}},
    lambda name: {"emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
)
_RIGHTS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"privileged": True},
    {"runAsUser": 0},
    {"runAsUser": 0, "runAsNonRoot": False},
    {"capabilities": {"add": ["CAP_SYS_ADMIN"]}},
    {"capabilities": {"add": ["IPC_LOCK"]}},
    {"allowPrivilegeEscalation": False},
)


def random_pod(random: Random, *, container: str = "vllm") -> dict[str, Any]:
    """Returns the spec of a pod with a vLLM container and others."""
    names = random.sample(_VOLUMES, random.randrange(4))
    spec: dict[str, Any] = {
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"},
        "containers": [_engine(random, names, container)],
        "volumes": [{"name": name, **random.choice(_SOURCES)(name)} for name in names],
    }
    others = random.sample(_NAMES, random.randrange(3))
    for name in others:
        kind = random.choice(("containers", "initContainers"))
        spec.setdefault(kind, []).append({"name": name, "image": "example/helper:1", **_parts(random, names)})
    if random.random() < 0.3:
        spec["securityContext"] = random.choice(({"runAsUser": 0}, {"fsGroup": 2000}, {"runAsNonRoot": True}))
    if random.random() < 0.3:
        spec["hostNetwork"] = True
    selector = random.choice(
        (
            {"matchLabels": {"app": "source"}},
            {"matchLabels": {"app": "another"}},
            {"matchExpressions": [{"key": "app", "operator": "In", "values": ["source"]}]},
        )
    )
    term = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
    if random.random() < 0.5:
        kind = random.choice(("podAffinity", "podAntiAffinity"))
        spec["affinity"] = {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    if random.random() < 0.3:
        spec["topologySpreadConstraints"] = [{**term, "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}]
    return {name: value for name, value in spec.items() if value}


def _engine(random: Random, volumes: list[str], name: str) -> dict[str, Any]:
    variables: list[dict[str, Any]] = [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "HOST", "value": "$(POD_IP)"},
        {"name": "HF_HOME", "value": random.choice(("/data/hub", "/root/.cache/huggingface"))},
        {"name": "HF_HUB_CACHE", "value": "$(HF_HOME)/hub"},
        {"name": "LITERAL", "value": "$$(NOTHING)"},
    ]
    requests = {"cpu": random.choice(("1", "500m")), "memory": "1Gi"}
    resources: dict[str, Any] = {"limits": {"nvidia.com/gpu": "1"}}
    if random.random() < 0.5:
        resources["limits"] |= {"cpu": "2", "memory": random.choice(("2Gi", "400Gi"))}
    if random.random() < 0.5:
        resources["requests"] = requests
    words = ["vllm", "serve", random.choice(("example/chat-8b", "/models/chat")), "--seed", "1"]
    if random.random() < 0.3:
        words += ["--otlp-traces-endpoint", "http://$(POD_IP):4317"]
    start = random.randrange(len(variables) + 1)
    return {
        "name": name,
        "image": "vllm/vllm-openai:v0.32.0",
        "command": words,
        "env": variables[:start],
        "ports": [{"containerPort": 8000}],
        "resources": resources,
        **_parts(random, volumes),
    }


def _parts(random: Random, volumes: list[str]) -> dict[str, Any]:
    """Returns the rights and the mounts of a container."""
    used = random.sample(volumes, random.randrange(len(volumes) + 1))
    places = random.sample(_PLACES, len(used))
    mounts = [{"name": name, "mountPath": place} for name, place in zip(used, places, strict=True)]
    return {
        name: value
        for name, value in (("securityContext", dict(random.choice(_RIGHTS))), ("volumeMounts", mounts))
        if value
    }


def _workload(random: Random) -> list[dict[str, Any]]:
    kind = random.choice(("Deployment", "StatefulSet", "LeaderWorkerSet"))
    template = {"metadata": {"labels": LABELS}, "spec": random_pod(random)}
    spec: dict[str, Any] = {"replicas": random.randrange(3), "selector": {"matchLabels": {"app": "source"}}}
    if kind == "LeaderWorkerSet":
        template["spec"]["containers"][0]["command"] += ["--tensor-parallel-size", "2"]
        spec = {"replicas": 1, "leaderWorkerTemplate": {"size": 2, "workerTemplate": template}}
    else:
        spec["template"] = template
    if kind == "StatefulSet":
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "9Gi"}}}
        spec |= {"serviceName": "x", "volumeClaimTemplates": [{"metadata": {"name": "disk"}, "spec": claim}]}
        mounts = template["spec"]["containers"][0].setdefault("volumeMounts", [])
        mounts.append({"name": "disk", "mountPath": "/disk"})
    version = "leaderworkerset.x-k8s.io/v1" if kind == "LeaderWorkerSet" else "apps/v1"
    found = [{"apiVersion": version, "kind": kind, "metadata": {"name": "source"}, "spec": spec}]
    if random.random() < 0.3 and kind != "LeaderWorkerSet":
        target = {"scaleTargetRef": {"kind": kind, "name": "source"}, "minReplicaCount": 1, "maxReplicaCount": 3}
        found.append(_object("keda.sh/v1alpha1", "ScaledObject", target))
    return found


def _object(version: str, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "source"}, "spec": dict(spec)}


def _kserve(random: Random) -> list[dict[str, Any]]:
    if random.random() < 0.5:
        pod = random_pod(random, container="kserve-container")
        pod["containers"][0]["args"] = pod["containers"][0].pop("command")[3:]
        pod["containers"][0]["command"] = ["vllm", "serve", "example/chat-8b"]
        return [_object("serving.kserve.io/v1beta1", "InferenceService", {"predictor": {**pod, "minReplicas": 1}})]
    pod = random_pod(random, container="main")
    spec = {"model": {"uri": "hf://example/chat-8b", "name": "chat"}, "replicas": 1, "template": pod}
    spec["storageInitializer"] = {"enabled": random.random() < 0.5}
    return [_object("serving.kserve.io/v1alpha2", "LLMInferenceService", spec)]


def _aibrix(random: Random) -> list[dict[str, Any]]:
    (workload, *_) = [one for one in (_workload(random) for _ in range(20)) if one[0]["kind"] == "Deployment"]
    workload[0]["metadata"]["labels"] = {"model.aibrix.ai/name": "chat"}
    return workload


def _kubeai(random: Random) -> list[dict[str, Any]]:
    spec: dict[str, Any] = {"engine": "VLLM", "url": "hf://example/chat-8b", "resourceProfile": "nvidia-gpu-l4:1"}
    spec["env"] = random.choice(({}, {"A": "1", "B": "$(A)"}))
    return [_object("kubeai.org/v1", "Model", spec)]


def _kthena(random: Random) -> list[dict[str, Any]]:
    role = {"name": "only", "replicas": 1, "entryTemplate": {"spec": random_pod(random)}}
    return [_object("workload.serving.volcano.sh/v1alpha1", "ModelServing", {"template": {"roles": [role]}})]


def _llm_d(random: Random) -> list[dict[str, Any]]:
    pod = random_pod(random)
    for name in ("nodeSelector", "topologySpreadConstraints"):
        pod.pop(name, None)
    pod["containers"][0] |= {"modelCommand": "custom"}
    artifacts = {"name": "example/chat-8b", "uri": "hf://example/chat-8b"}
    return [{"modelArtifacts": artifacts, "decode": {"replicas": 1, **pod}, "prefill": {"create": False}}]


def _litellm(random: Random) -> list[dict[str, Any]]:
    port = random.randrange(8000, 8010)
    parameters = {"model": "hosted_vllm/example/chat-8b", "api_base": f"http://engine:{port}/v1"}
    return [{"model_list": [{"model_name": "chat", "litellm_params": parameters}]}]


def _production_stack(random: Random) -> list[dict[str, Any]]:
    pod = random_pod(random)
    engine = pod["containers"][0]
    model = {
        "name": "chat",
        "repository": "vllm/vllm-openai",
        "tag": "v0.32.0",
        "modelURL": "example/chat-8b",
        "replicaCount": 1,
        "requestGPU": 1,
        "limitMemory": random.choice(("1Gi", "400Gi")),
        "env": engine["env"],
        "extraVolumes": pod.get("volumes", []),
        "extraVolumeMounts": engine.get("volumeMounts", []),
        "affinity": pod.get("affinity", {}),
        "podLabels": LABELS,
    }
    values = {"modelSpec": [model], "containerSecurityContext": engine.get("securityContext", {})}
    return [{"servingEngineSpec": values}]


SYSTEMS: Final[Mapping[str, Callable[[Random], list[dict[str, Any]]]]] = {
    "workloads": _workload,
    "kserve": _kserve,
    "aibrix": _aibrix,
    "kubeai": _kubeai,
    "kthena": _kthena,
    "llm-d": _llm_d,
    "litellm": _litellm,
    "production-stack": _production_stack,
}
"""Name of a system to a function that returns random documents of it."""

"""Containers and pods as engines and pod templates."""

import math
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fairlead import units
from fairlead.errors import BadInput
from fairlead_cli.migration.command_line import KEY_FLAG, engine_command, read_flags
from fairlead_cli.migration.drafts import PoolDraft
from fairlead_cli.migration.field_reader import FieldReader, Outcome
from fairlead_cli.migration.references import all_mounts, rename_taken

_POD_FIELDS: Final = (
    "nodeSelector",
    "tolerations",
    "affinity",
    "topologySpreadConstraints",
    "priorityClassName",
    "runtimeClassName",
    "schedulerName",
    "serviceAccountName",
    "securityContext",
    "hostNetwork",
    "hostIPC",
    "hostPID",
    "dnsPolicy",
    "dnsConfig",
    "resourceClaims",
)
_CONTAINER_FIELDS: Final = ("imagePullPolicy", "securityContext", "workingDir", "envFrom", "volumeDevices")
SHARED_MEMORY_SIZE: Final = "16Gi"
START_SECONDS: Final = 1800
"""The time for a start that the operator gives engines."""
_PROBES: Final = ("livenessProbe", "readinessProbe", "startupProbe")
_PROBE_SECONDS: Final = 10
_ENGINE_IMAGE: Final = re.compile(
    r"(?:^|/)(?:vllm|vllm-(?:openai|cpu|tpu|rocm|gaudi|hpu|xpu)[\w-]*|sglang[\w-]*|"
    r"llm-d(?:-(?:cuda|rocm|xpu|hpu|cpu|aws|gke|tpu|inference-sim))?)(?:[:@]|$)"
)
_SIDECARS: Final = {
    "aibrix/runtime": "AIBrix's sidecar serves AIBrix alone",
    "kthena/runtime": "kthena's sidecar serves kthena alone",
    "routing-sidecar": "Fairlead's gateway sends prompts to prefill and answers to decode itself",
}
"""Part of an image to the reason that its container is not carried over."""
_KEY_VARIABLE: Final = "VLLM_API_KEY"
_SET_BY_SOME: Final = "Fairlead sets this variable itself"
_SET_VARIABLES: Final = {
    **dict.fromkeys(
        ("POD_IP", "VLLM_HOST_IP", "VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_PORT", "PYTHONHASHSEED"),
        _SET_BY_SOME,
    ),
    "HF_HOME": "Fairlead sets this variable itself; spec.model.cache keeps downloaded weights",
    _KEY_VARIABLE: "the gateway checks keys, and a NetworkPolicy protects the engines",
    "CUDA_VISIBLE_DEVICES": "the device plugin chooses the devices of a pod",
}
EXTRA_ARGS: Final = "VLLM_ADDITIONAL_ARGS"
"""Variable from which KServe's start script takes more arguments."""
_DEVICE: Final = re.compile(r"/.*(gpu|tpu|npu|gaudi|ascend|neuron|mig-|vcuda|i915|xe|atom)", re.IGNORECASE)
_DEVICE_LABEL: Final = re.compile(r"gpu|accelerator|tpu|npu|gaudi|ascend|neuron|device|instance-type", re.IGNORECASE)
"""In the names of node labels whose values name a device, not a node or a rack."""
_REFERENCE: Final = re.compile(r"(?<!\$)\$\((\w+)\)")
"""A variable of the container in an argument, which Kubernetes expands."""
_SHARED_MEMORY: Final = "/dev/shm"
_SHARED_MEMORY_VOLUME: Final = "shared-memory"
_CACHE_VARIABLE: Final = "HF_HOME"
_NOT_ROOT: Final = "pods run as user 65532, not as root, unless securityContext in pools[].template names another"
ACCOUNT_NOTE: Final = "list the account in the chart's operator.serviceAccounts, or the operator may not use it"
_HOST_PATH: Final = "hostPath: user 65532 must be able to read it, and the namespace's Pod Security level must allow it"

_BY_ADDRESS: Final = "keep it, and write a ModelDeployment with `engine.type: External` that leads to it"


def find_engine(pod: FieldReader, *, mentioned: bool = False) -> FieldReader | None:
    """Returns the container that runs vLLM or SGLang, by its command or its image.

    mentioned: True takes a container that only mentions one of them, if no other runs one.
    """
    containers = [one for one in pod.entries("containers") if not _sidecar_reason(one.peek("image"))]
    mentions = []
    for container in containers:
        words = [list(map(str, container.peek(name) or ())) for name in ("command", "args")]
        try:
            program = engine_command(*words).program
        except BadInput as error:
            program = "a script" if "shell computes" in error.message else None
        if program or (not words[0] and _ENGINE_IMAGE.search(str(container.peek("image") or ""))):
            return container
        if re.search("vllm|sglang", " ".join([*words[0], *words[1], str(container.peek("image"))])):
            mentions.append(container)
    return mentions[0] if mentioned and mentions else None


def read_pod(pod: FieldReader, container: FieldReader, pool: PoolDraft, arguments: Sequence[str] | None = None) -> None:
    """Stores a pod, its engine's container and its sidecars in a pool.

    arguments: of the engine, where the container's are those of another program.
    """
    _read_pod_fields(pod, pool)
    for kind in ("initContainers", "containers"):
        for other in pod.entries(kind):
            if other.path == container.path:
                continue
            fields = other.fields()
            if reason := _sidecar_reason(fields.get("image")):
                other.note("", reason, Outcome.DROPPED)
            else:
                pool.pod.setdefault(kind, []).append(fields)
    if "initContainers" in pool.pod:
        pod.note("initContainers", _NOT_ROOT)
    read_container(container, pool, arguments)
    _read_volumes(pod, container, pool)


def _sidecar_reason(image: object) -> str:
    return next((reason for part, reason in _SIDECARS.items() if part in str(image or "")), "")


def read_container(container: FieldReader, pool: PoolDraft, arguments: Sequence[str] | None = None) -> None:
    """Stores the container of an engine in a pool."""
    container.skip("name")
    field = "args" if "args" in container else "command" if "command" in container else "env"
    if arguments is None:
        pool.engine.image = container.text("image") or pool.engine.image
        arguments = _read_command(container, pool)
    store_flags(arguments, pool, container, field)
    read_environment(container, pool)
    read_resources(container.section("resources"), pool)
    read_probes(container, pool)
    container.drop("ports", "Fairlead's engines listen on port 8000")
    container.drop("lifecycle", "Fairlead ends an engine after its last request")
    pool.container |= {name: container.value(name) for name in _CONTAINER_FIELDS if name in container}


def _read_command(container: FieldReader, pool: PoolDraft) -> list[str]:
    """Returns the engine's arguments in a command. Raises BadInput for those that a shell sets."""
    try:
        command = engine_command(container.texts("command"), container.texts("args"))
    except BadInput as error:
        raise container.error("command", error.message, error.hint) from error
    engine = pool.engine
    engine.env += [{"name": name, "value": value} for name, value in command.assignments.items()]
    engine.type = command.program or ("SGLang" if "sglang" in engine.image else engine.type)
    if command.surroundings:
        container.note("command", "the engine's own command is carried over, without the rest of the script")
    variables = {str(one.peek("name")): str(one.peek("value") or "") for one in container.entries("env")}
    variables |= command.assignments
    if "envFrom" not in container:
        problem = ""
        if unknown := command.variables - variables.keys():
            problem = f"the script sets ${min(unknown)} itself"
        # Kubernetes and controllers add variables in capitals, such as LWS_LEADER_ADDRESS.
        elif commands := [name for name in command.references - variables.keys() if not name.isupper()]:
            problem = f"the shell computes $({min(commands)})"
        if problem:
            message = f"{problem}, and Fairlead's engines have no shell"
            raise container.error("command", message, "write its value in the place of it")
    kept = [word for word in command.arguments if word != f"$({EXTRA_ARGS})"]
    values = {name: value for name, value in variables.items() if value}
    expanded = [_REFERENCE.sub(lambda found: values.get(found[1], found[0]), word) for word in kept]
    return expanded + shlex.split(variables.get(EXTRA_ARGS, ""))


def store_flags(words: Sequence[str], pool: PoolDraft, reader: FieldReader, field: str) -> None:
    """Stores the flags of an engine in a pool, and notes those that are not carried over."""
    engine = pool.engine
    engine.flags = read_flags(words, engine.type, engine.image)
    engine.needs_key |= KEY_FLAG in engine.flags.dropped
    for flag, reason in engine.flags.dropped.items():
        reader.note(field, f"{flag}: {reason}", Outcome.DROPPED)


def read_probes(container: FieldReader, pool: PoolDraft) -> None:
    """Stores a longer time for the start than Fairlead's in the template."""
    found = {name: container.value(name) for name in _PROBES if isinstance(container.peek(name), dict)}
    container.skip(*found)
    first = found.get("startupProbe") or found.get("livenessProbe")
    seconds = 0 if first is None else _probe_seconds(first)
    kept = "startupProbe" if seconds > START_SECONDS else ""
    for name in [one for one in found if one != kept]:
        container.note(name, "Fairlead sets the probes of its engines; pools[].template changes them", Outcome.DROPPED)
    if kept:
        container.note(kept, f"pools[].template gives engines {seconds} s to start, as before")
        limit = {"periodSeconds": _PROBE_SECONDS, "failureThreshold": math.ceil(seconds / _PROBE_SECONDS)}
        pool.container["startupProbe"] = limit


def _probe_seconds(probe: dict[str, Any]) -> int:
    """Returns the time until a probe fails for good, with the defaults of Kubernetes."""
    values = [probe.get(name, default) for name, default in (("periodSeconds", 10), ("failureThreshold", 3))]
    period, failures = map(int, values)
    return int(probe.get("initialDelaySeconds", 0)) + period * failures


def read_environment(container: FieldReader, pool: PoolDraft) -> None:
    """Stores the environment variables of a container in a pool.

    One that Fairlead sets for some engines only stays if another value refers to it.
    """
    entries = container.entries("env")
    texts = [str(one.peek("value") or "") for one in entries if one.peek("name") not in _SET_VARIABLES]
    used = set(_REFERENCE.findall(" ".join([*texts, *pool.engine.flags.kept])))
    for variable in entries:
        name, source = variable.text("name"), variable.section("valueFrom")
        if name == EXTRA_ARGS:
            variable.skip("value")
        elif name == _CACHE_VARIABLE and is_mounted(str(variable.peek("value") or ""), container):
            pool.engine.env.append({"name": name, "value": variable.text("value")})
            variable.note(
                "",
                f"{name}: kept with its volume, so that engines find the weights; user 65532 must be able to write there",
            )
        elif name in _SET_VARIABLES and not (name in used and _SET_VARIABLES[name] == _SET_BY_SOME):
            pool.engine.needs_key |= name == _KEY_VARIABLE
            variable.skip("value", "valueFrom")
            variable.note("", f"{name}: {_SET_VARIABLES[name]}", Outcome.DROPPED)
        elif "resourceFieldRef" in source:
            source.skip("resourceFieldRef")
            variable.note("", f"{name}: Fairlead's variables cannot refer to resources", Outcome.DROPPED)
        elif source:
            pool.engine.env.append({"name": name, "valueFrom": variable.value("valueFrom")})
        else:
            pool.devices.signs += [name] if name == "NVIDIA_VISIBLE_DEVICES" else []
            pool.engine.env.append({"name": name, "value": variable.text("value")})
    pool.engine.env = list({variable["name"]: variable for variable in pool.engine.env}.values())


def is_mounted(path: str, container: FieldReader) -> bool:
    """Returns True if a volume of the container, other than shared memory, holds a path."""
    places = [str(mount.get("mountPath", "")).rstrip("/") for mount in container.peek("volumeMounts") or ()]
    return any(f"{path}/".startswith(f"{place}/") for place in places if place not in ("", _SHARED_MEMORY))


def read_resources(resources: FieldReader, pool: PoolDraft) -> None:
    """Stores resources in the template, but for accelerators, which the pool counts."""
    kept: dict[str, dict[str, Any]] = {}
    for kind in ("requests", "limits"):
        section = resources.section(kind)
        for name in section.names():
            if _DEVICE.search(name):
                pool.devices.add(name, section.integer(name) or 0)
            else:
                kept.setdefault(kind, {})[name] = section.value(name)
    if resources.peek("claims"):
        pool.devices.signs.append("resources.claims")
        pool.container.setdefault("resources", {})["claims"] = resources.value("claims")
    if kept:
        pool.container.setdefault("resources", {}).update(kept)


def _read_pod_fields(pod: FieldReader, pool: PoolDraft) -> None:
    pod.drop("terminationGracePeriodSeconds", "set rollout.drainTimeout: it is the time for requests in flight")
    pod.drop("restartPolicy", "Fairlead's pods are always restarted")
    pool.engine.pull_secrets = [secret.text("name") for secret in pod.entries("imagePullSecrets")]
    pool.devices.hints += node_labels(pod)
    runtime, claims = pod.peek("runtimeClassName"), pod.peek("resourceClaims")
    pool.devices.signs += [f"runtimeClassName {runtime}"] if runtime else []
    pool.devices.signs += ["resourceClaims"] if claims else []
    pool.pod |= {name: pod.value(name) for name in _POD_FIELDS if name in pod}
    if "serviceAccountName" in pool.pod:
        pod.note("serviceAccountName", ACCOUNT_NOTE)


def node_labels(pod: FieldReader) -> list[str]:
    """Returns the values of the node labels that a pod asks for, if they can name a device."""
    selector, affinity = pod.peek("nodeSelector"), pod.peek("affinity")
    pairs = selector.items() if isinstance(selector, dict) else ()
    found = [str(value) for name, value in pairs if _DEVICE_LABEL.search(str(name))]
    value: Any = affinity
    for name in ("nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"):
        value = value.get(name) if isinstance(value, dict) else None
    return found + labels_of_terms(value)


def node_affinity(terms: list[Any]) -> dict[str, Any]:
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def labels_of_terms(terms: Any) -> list[str]:
    """Returns the values of the node labels that nodeSelectorTerms ask for, as `node_labels`."""
    found: list[str] = []
    for term in terms or ():
        for expression in (term.get("matchExpressions") or ()) if isinstance(term, dict) else ():
            if expression.get("operator") == "In" and _DEVICE_LABEL.search(str(expression.get("key"))):
                found += map(str, expression.get("values") or ())
    return found


def _read_volumes(pod: FieldReader, container: FieldReader, pool: PoolDraft) -> None:
    """Stores volumes and mounts in the template, but for shared memory, which Fairlead mounts."""
    mounts, shared = [], set()
    for mount in container.entries("volumeMounts"):
        if mount.peek("mountPath") == _SHARED_MEMORY:
            shared.add(mount.text("name"))
            mount.skip("mountPath")
            mount.note("", "Fairlead mounts shared memory itself", Outcome.DROPPED)
        else:
            mounts.append(mount.fields())
    volumes, memory = [*pool.claim_volumes], []
    for volume in pod.entries("volumes"):
        fields = volume.fields()
        if "hostPath" in fields:
            volume.note("", _HOST_PATH)
        if fields.get("name") not in shared:
            volumes.append(fields)
        elif not (size := (fields.get("emptyDir") or {}).get("sizeLimit")):
            volume.note("", f"shared memory without a size becomes {SHARED_MEMORY_SIZE}: set sizeLimit for more")
        elif kept := shared_memory(size, volume):
            memory.append(kept)
    pool.container |= {"volumeMounts": mounts} if mounts else {}
    pool.pod |= {"volumes": volumes} if volumes else {}
    # Before the volume of shared memory is added: a foreign volume of that name must make way.
    rename_taken(pool, pod)
    if memory:
        pool.pod["volumes"] = [*volumes, *memory]
    for other in all_mounts(pool):
        if str(other.get("name")).removeprefix("old-") in shared:
            other["name"] = _SHARED_MEMORY_VOLUME
    claims = {volume.get("name"): (volume.get("persistentVolumeClaim") or {}).get("claimName") for volume in volumes}
    for place in mounts:
        if claim := claims.get(place.get("name")):
            folder, path = str(place.get("subPath") or "").strip("/"), str(place.get("mountPath", "")).rstrip("/")
            pool.mounted_claims[path] = f"{claim}/{folder}" if folder else str(claim)


def shared_memory(size: Any, reader: FieldReader, field: str = "") -> dict[str, Any] | None:
    """Returns a volume in memory that is greater than Fairlead's own, and notes it; else None."""
    try:
        if size is None or units.parse_size(str(size)) <= units.parse_size(SHARED_MEMORY_SIZE):
            return None
    except BadInput:
        reader.note(field, f"shared memory: {size!r} is no size, so it becomes {SHARED_MEMORY_SIZE}", Outcome.DROPPED)
        return None
    reader.note(field, f"shared memory keeps its size of {size}")
    return {"name": _SHARED_MEMORY_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": str(size)}}


def claim_of_path(path: str, pool: PoolDraft) -> str:
    """Returns `pvc:CLAIM/PATH` for a path on a mounted claim; an empty text for other paths.

    Removes that volume from the template, unless something else points below its mount.
    """
    folders = [place for place in pool.mounted_claims if f"{path}/".startswith(f"{place}/")]
    if not folders:
        return ""
    place = max(folders, key=len)
    mounts = pool.container["volumeMounts"]
    mount = next(one for one in mounts if str(one.get("mountPath", "")).rstrip("/") == place)
    containers = [one for kind in ("containers", "initContainers") for one in pool.pod.get(kind, ())]
    others = [*pool.engine.flags.kept, *_texts([pool.engine.env, containers, pool.container.get("workingDir")])]
    shares_volume = any(
        one is not mount and one.get("name") == mount.get("name") for one in [*mounts, *_mounts(containers)]
    )
    if not shares_volume and not any(place in word for word in others):
        mounts.remove(mount)
        pool.pod["volumes"] = [one for one in pool.pod["volumes"] if one.get("name") != mount.get("name")]
    for holder, name in ((pool.container, "volumeMounts"), (pool.pod, "volumes")):
        if not holder.get(name, True):
            del holder[name]
    return f"pvc:{'/'.join(part for part in (pool.mounted_claims[place], path[len(place) :].strip('/')) if part)}"


def _mounts(containers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [mount for container in containers for mount in container.get("volumeMounts") or ()]


def _texts(value: Any) -> list[str]:
    """Returns every text in a value of a manifest."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for one in inner for text in _texts(one)]
    return [value] if isinstance(value, str) else []


@dataclass(frozen=True, slots=True)
class OtherEngine:
    """An engine other than vLLM and SGLang.

    images: a pattern of the last parts of its images' names. programs: names of its programs.
    type: the `engine.type` with which Fairlead runs it; empty if Fairlead does not run it.
    """

    name: str
    images: str
    programs: tuple[str, ...]
    type: str = ""

    @property
    def problem(self) -> str:
        return f"convert reads no command line of {self.name}" if self.type else f"Fairlead does not run {self.name}"

    @property
    def hint(self) -> str:
        return f"write a ModelDeployment with `engine.type: {self.type}`" if self.type else _BY_ADDRESS

    def runs_in(self, container: FieldReader) -> bool:
        """Whether the image or a word of the command line is one of the engine's."""
        words = [str(word) for name in ("command", "args") for word in container.peek(name) or ()]
        if any(word.rsplit("/", 1)[-1] in self.programs for text in words for word in text.split()):
            return True
        return re.search(f"(?:^|/)(?:{self.images})(?:[:@]|$)", str(container.peek("image") or "")) is not None


_OTHERS: Final = (
    OtherEngine("Ollama", "ollama", ("ollama",)),
    OtherEngine("TGI", "text-generation-inference", ("text-generation-launcher",)),
    OtherEngine("LocalAI", "local-?ai", ("local-ai",)),
    OtherEngine("LMDeploy", "lmdeploy", ("lmdeploy",)),
    OtherEngine("Triton", "tritonserver", ("tritonserver",)),
    OtherEngine("llama.cpp", r"llama\.cpp", ("llama-server",), "LlamaCpp"),
    OtherEngine("TensorRT-LLM", r"tensorrt-llm(?:/release)?", ("trtllm-serve",), "TRTLLM"),
)


def other_engine(containers: Iterable[FieldReader]) -> OtherEngine | None:
    """Returns the first other engine that a container runs; None without one."""
    for container in containers:
        for engine in _OTHERS:
            if engine.runs_in(container):
                return engine
    return None

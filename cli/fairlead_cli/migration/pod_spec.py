"""Containers and pods as engines and pod templates."""

import re
from typing import Any, Final

from fairlead.errors import BadInput
from fairlead_cli.migration.command_line import KEY_FLAG, engine_command, read_flags
from fairlead_cli.migration.draft import PoolDraft
from fairlead_cli.migration.field_reader import FieldReader, Outcome

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
)
_CONTAINER_FIELDS: Final = ("imagePullPolicy", "securityContext", "workingDir", "envFrom", "volumeDevices")
_PROBES: Final = ("livenessProbe", "readinessProbe", "startupProbe")
_KEY_VARIABLE: Final = "VLLM_API_KEY"
_SET_VARIABLES: Final = {
    "POD_IP": "Fairlead sets this variable itself",
    "VLLM_HOST_IP": "Fairlead sets this variable itself",
    "VLLM_NIXL_SIDE_CHANNEL_HOST": "Fairlead sets this variable itself",
    "VLLM_NIXL_SIDE_CHANNEL_PORT": "Fairlead sets this variable itself",
    "PYTHONHASHSEED": "Fairlead sets this variable itself",
    "HF_HOME": "Fairlead sets this variable itself; spec.model.cache keeps downloaded weights",
    _KEY_VARIABLE: "the gateway checks keys, and a NetworkPolicy protects the engines",
    "CUDA_VISIBLE_DEVICES": "the device plugin chooses the devices of a pod",
}
EXTRA_ARGS: Final = "VLLM_ADDITIONAL_ARGS"
"""Variable from which KServe's start script takes more arguments."""
_DEVICE: Final = re.compile(r"/.*(gpu|tpu|npu|gaudi|ascend|neuron|mig-|i915|xe|atom)", re.IGNORECASE)
_SHARED_MEMORY: Final = "/dev/shm"
_CACHE_VARIABLE: Final = "HF_HOME"
_NOT_ROOT: Final = "pods run as user 65532, not as root, unless securityContext in pools[].template names another"
_HOST_PATH: Final = "hostPath: user 65532 must be able to read it, and the namespace's Pod Security level must allow it"


def read_pod(pod: FieldReader, container: FieldReader, pool: PoolDraft) -> None:
    """Stores a pod and its engine's container in a pool."""
    _read_pod_fields(pod, pool)
    read_container(container, pool)
    _read_volumes(pod, container, pool)


def read_container(container: FieldReader, pool: PoolDraft) -> None:
    """Stores the container of an engine in a pool."""
    engine = pool.engine
    container.skip("name")
    engine.image = container.text("image") or engine.image
    words = container.texts("command"), container.texts("args")
    try:
        command = engine_command(*words)
    except BadInput as error:
        raise container.error("command", error.message, error.hint) from error
    engine.type = command.program or ("SGLang" if "sglang" in engine.image else engine.type)
    if command.surroundings:
        container.note("command", "the engine's own command is carried over, without the rest of the script")
    engine.flags = read_flags(command.arguments, engine.type)
    engine.needs_key |= KEY_FLAG in engine.flags.dropped
    for flag, reason in engine.flags.dropped.items():
        container.note("args" if words[1] else "command", f"{flag}: {reason}", Outcome.DROPPED)
    read_environment(container, pool)
    read_resources(container.section("resources"), pool)
    for name in _PROBES:
        container.drop(name, "Fairlead sets the probes of its engines; pools[].template changes them")
    container.drop("ports", "Fairlead's engines listen on port 8000")
    container.drop("lifecycle", "Fairlead ends an engine after its last request")
    pool.container |= {name: container.value(name) for name in _CONTAINER_FIELDS if name in container}


def read_environment(container: FieldReader, pool: PoolDraft, field: str = "env") -> None:
    """Stores the environment variables of a container in a pool."""
    for variable in container.entries(field):
        name, source = variable.text("name"), variable.section("valueFrom")
        if name == EXTRA_ARGS:
            variable.skip("value")
        elif name == _CACHE_VARIABLE and is_mounted(str(variable.peek("value") or ""), container):
            pool.engine.env.append({"name": name, "value": variable.text("value")})
            variable.note(
                "",
                f"{name}: kept with its volume, so that engines find the weights; user 65532 must be able to write there",
            )
        elif name in _SET_VARIABLES:
            pool.engine.needs_key |= name == _KEY_VARIABLE
            variable.skip("value", "valueFrom")
            variable.note("", f"{name}: {_SET_VARIABLES[name]}", Outcome.DROPPED)
        elif "resourceFieldRef" in source:
            source.skip("resourceFieldRef")
            variable.note("", f"{name}: Fairlead's variables cannot refer to resources", Outcome.DROPPED)
        elif source:
            pool.engine.env.append({"name": name, "valueFrom": variable.value("valueFrom")})
        else:
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
                pool.devices.resource = name
                pool.devices.count = section.integer(name) or 0
            else:
                kept.setdefault(kind, {})[name] = section.value(name)
    if kept:
        pool.container["resources"] = kept


def _read_pod_fields(pod: FieldReader, pool: PoolDraft) -> None:
    pod.drop("terminationGracePeriodSeconds", "set rollout.drainTimeout: it is the time for requests in flight")
    pod.drop("restartPolicy", "Fairlead's pods are always restarted")
    pool.engine.pull_secrets = [secret.text("name") for secret in pod.entries("imagePullSecrets")]
    pool.devices.hints += node_labels(pod)
    pool.pod |= {name: pod.value(name) for name in _POD_FIELDS if name in pod}
    if "initContainers" in pod:
        pool.pod["initContainers"] = pod.value("initContainers")
        pod.note("initContainers", _NOT_ROOT)


def node_labels(pod: FieldReader) -> list[str]:
    """Returns the values of the node labels that a pod asks for."""
    selector, affinity = pod.peek("nodeSelector"), pod.peek("affinity")
    found = [str(value) for value in selector.values()] if isinstance(selector, dict) else []
    value: Any = affinity
    for name in ("nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"):
        value = value.get(name) if isinstance(value, dict) else None
    return found + labels_of_terms(value)


def labels_of_terms(terms: Any) -> list[str]:
    """Returns the values of the node labels that nodeSelectorTerms ask for."""
    found: list[str] = []
    for term in terms or ():
        for expression in (term.get("matchExpressions") or ()) if isinstance(term, dict) else ():
            if expression.get("operator") == "In":
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
            mounts.append({name: mount.value(name) for name in mount.names()})
    volumes = []
    for volume in pod.entries("volumes"):
        fields = {name: volume.value(name) for name in volume.names()}
        if "hostPath" in fields:
            volume.note("", _HOST_PATH)
        if fields.get("name") not in shared:
            volumes.append(fields)
    if mounts:
        pool.container["volumeMounts"] = mounts
    if volumes:
        pool.pod["volumes"] = volumes
    claims = {volume.get("name"): (volume.get("persistentVolumeClaim") or {}).get("claimName") for volume in volumes}
    for place in mounts:
        if claim := claims.get(place.get("name")):
            folder, path = str(place.get("subPath") or "").strip("/"), str(place.get("mountPath", "")).rstrip("/")
            pool.mounted_claims[path] = f"{claim}/{folder}" if folder else str(claim)


def claim_of_path(path: str, pool: PoolDraft) -> str:
    """Returns `pvc:CLAIM/PATH` for a path on a mounted claim; an empty text for other paths.

    Removes that volume from the template, unless a cache of weights is on it.
    """
    for mount in pool.container.get("volumeMounts", []):
        place = str(mount.get("mountPath", "")).rstrip("/")
        volume: dict[str, Any] = next(
            (v for v in pool.pod.get("volumes", []) if v.get("name") == mount.get("name")), {}
        )
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if claim and (path == place or path.startswith(f"{place}/")):
            if not any(variable["name"] == _CACHE_VARIABLE for variable in pool.engine.env):
                pool.container["volumeMounts"].remove(mount)
                pool.pod["volumes"].remove(volume)
            parts = [claim, mount.get("subPath", "").strip("/"), path[len(place) :].strip("/")]
            for holder, name in ((pool.container, "volumeMounts"), (pool.pod, "volumes")):
                if not holder.get(name, True):
                    del holder[name]
            return "pvc:" + "/".join(part for part in parts if part)
    return ""

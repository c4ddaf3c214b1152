"""The pod of an engine, render version 1: restricted Pod Security throughout, whatever the kind.

What is written here is what engines in the field run with: see ``revision.py`` before changing it.
"""

import math
from typing import Final

from fairlead.api import EnvironmentVariable, Pool
from fairlead.engines.containers import EngineContainer, InstancePod
from fairlead.engines.containers.base import HealthProbe
from fairlead.fleet.labels import ENDPOINT_LABEL, POD_REVISION_LABEL
from fairlead.kube.resources import Manifest
from fairlead_operator.render.accelerators import device_requests, placement
from fairlead_operator.render.names import child_labels, selector_labels
from fairlead_operator.render.revision import RenderPin
from fairlead_operator.render.template_overrides import merge_template

ENGINE_CONTAINER_NAME: Final = "engine"
_USER_ID: Final = 65_532
"""Any number but 0 will do, also one without an entry in the image's /etc/passwd."""
_HOME_FOLDER: Final = "/var/lib/fairlead/home"
_SHARED_MEMORY_SIZE: Final = "16Gi"
"""The most that /dev/shm may take; it counts as the pod's memory only as far as it is used. The runtime's own has 64 MiB."""
_START_SECONDS: Final = 1800
_AFTER_DRAIN_SECONDS: Final = 30
"""From the end of the drain to SIGKILL: SIGTERM, and what an engine does of its own then."""


def pod_template(pod: InstancePod, container: EngineContainer, pin: RenderPin, service_account: str) -> Manifest:
    """One pod of one instance, the pool's own template merged in. Raises BadInput when that cannot be merged."""
    labels = {**child_labels(pod.model, pod.pool), POD_REVISION_LABEL: pin.revision}
    if pod.serves_http:
        labels[ENDPOINT_LABEL] = "true"
    template: Manifest = {
        "metadata": {"labels": labels, "annotations": container.pod_info.annotations() if pod.serves_http else {}},
        "spec": _pod_spec(pod, container, pin, service_account),
    }
    own = pod.pool.template
    if own is None:
        return template
    metadata = merge_template(
        {"labels": own.metadata.labels, "annotations": own.metadata.annotations}, template["metadata"], "metadata"
    )
    return {"metadata": metadata, "spec": merge_template(template["spec"], own.spec, "template.spec")}


def _pod_spec(pod: InstancePod, container: EngineContainer, pin: RenderPin, service_account: str) -> Manifest:
    drain = pod.spec.rollout.drain_seconds
    pull = [*pin.pull_secrets, *(secret.name for secret in pod.spec.engine.image_pull_secrets)]
    if container.weights is not None and container.weights.pull_secret is not None:
        pull.append(container.weights.pull_secret)
    found: Manifest = {
        "serviceAccountName": service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service called vllm would set VLLM_PORT, which vLLM takes for its own
        "terminationGracePeriodSeconds": math.ceil(drain) + _AFTER_DRAIN_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER_ID,
            "runAsGroup": _USER_ID,
            "fsGroup": _USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(pod, container, pin)],
        "volumes": _volumes(container),
    }
    if pull:
        found["imagePullSecrets"] = [{"name": name} for name in dict.fromkeys(pull)]
    if container.needs_devices:
        found |= placement(pod.accelerator)
    if not pod.is_multi_node:
        found["topologySpreadConstraints"] = [_topology_spread(pod, pod.pool)]
    return found


def _container(pod: InstancePod, container: EngineContainer, pin: RenderPin) -> Manifest:
    found: Manifest = {
        "name": ENGINE_CONTAINER_NAME,
        "image": pod.spec.engine.image or pin.image,
        "command": list(container.command),
        "args": list(container.args),
        "env": _env(container, pod.spec.engine.env),
        "ports": [{"name": name, "containerPort": port} for name, port in container.ports.items()],
        "resources": _resources(pod, container),
        "volumeMounts": _mounts(container),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if container.read_only_root:
        found["securityContext"]["readOnlyRootFilesystem"] = True
    if container.weights is not None and container.weights.secret is not None:
        found["envFrom"] = [{"secretRef": {"name": container.weights.secret}}]
    if container.health is not None:
        found |= _probes(container.health, container.ports["http"])
    if container.drain is not None:
        found["lifecycle"] = {"preStop": container.drain.prestop_hook(pod.spec.rollout.drain_seconds)}
    return {key: value for key, value in found.items() if value != []}


def _env(container: EngineContainer, own: list[EnvironmentVariable]) -> list[Manifest]:
    """The model's variables take the place of ours of the same name, and may refer to ours."""
    variables = list(container.env)
    if container.needs_home:
        # Engines look their user up for names of caches; without a name the look-up of an unknown number fails.
        variables = [{"name": "HOME", "value": _HOME_FOLDER}, {"name": "USER", "value": "fairlead"}, *variables]
    merged = {one["name"]: one for one in variables}
    for variable in own:
        merged[variable.name] = variable.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude_defaults=True
        )
    return list(merged.values())


def _resources(pod: InstancePod, container: EngineContainer) -> Manifest:
    requests: dict[str, str] = {}
    if container.cpu_millis is not None:
        whole, rest = divmod(container.cpu_millis, 1000)
        requests["cpu"] = f"{container.cpu_millis}m" if rest else str(whole)
    if container.memory_bytes is not None:
        requests["memory"] = _format_quantity(container.memory_bytes)
    if container.disk_bytes is not None:
        requests["ephemeral-storage"] = _format_quantity(container.disk_bytes)
    found: Manifest = {}
    if requests:
        found["requests"] = requests
    if container.needs_devices and (limits := device_requests(pod)):
        found["limits"] = limits
    return found


def _format_quantity(size: int) -> str:
    for unit, factor in (("Gi", 2**30), ("Mi", 2**20)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _volumes(container: EngineContainer) -> list[Manifest]:
    found: list[Manifest] = [{"name": "tmp", "emptyDir": {}}]
    if container.needs_home:
        found.append({"name": "home", "emptyDir": {}})
    if container.needs_shared_memory:
        found.append({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": _SHARED_MEMORY_SIZE}})
    return [*found, *(container.weights.volumes if container.weights is not None else ()), *container.extra_volumes]


def _mounts(container: EngineContainer) -> list[Manifest]:
    found: list[Manifest] = [{"name": "tmp", "mountPath": "/tmp"}]
    if container.needs_home:
        found.append({"name": "home", "mountPath": _HOME_FOLDER})
    if container.needs_shared_memory:
        found.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    return [*found, *(container.weights.mounts if container.weights is not None else ()), *container.extra_mounts]


def _probes(health: HealthProbe, port: int) -> Manifest:
    """Slow to give up and quick to notice: half an hour to load weights, then readiness in seconds.

    /health says nothing of draining or overload, and an engine under load may answer late: liveness is patient.
    """
    look = {"httpGet": {"path": health.path, "port": port}, "timeoutSeconds": health.timeout}
    return {
        "startupProbe": {
            **look,
            "periodSeconds": health.startup_period,
            "failureThreshold": _START_SECONDS // health.startup_period,
        },
        "readinessProbe": {**look, "periodSeconds": health.period, "failureThreshold": 3},
        "livenessProbe": {**look, "periodSeconds": 10, "failureThreshold": health.liveness_failures},
    }


def _topology_spread(pod: InstancePod, pool: Pool) -> Manifest:
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector_labels(pod.model, pool)},
    }

"""The pod template of an engine, base of all render versions: restricted Pod Security.

Running engines use this version: see `revision` before changing it.
"""

import math
from typing import Final

from fairlead.api.spec.environment import EnvironmentVariable
from fairlead.api.spec.pools import Pool
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
"""Any number except 0 works, also one that the image's /etc/passwd lacks."""
_HOME_FOLDER: Final = "/var/lib/fairlead/home"
_SHARED_MEMORY_SIZE: Final = "16Gi"
"""Maximum of /dev/shm. Only used memory counts for the pod. The runtime's default is 64 MiB."""
_START_SECONDS: Final = 1800
_AFTER_DRAIN_SECONDS: Final = 30
"""From the end of the drain to SIGKILL: time for the engine's own shutdown after SIGTERM."""


def pod_template(pod: InstancePod, container: EngineContainer, pin: RenderPin, service_account: str) -> Manifest:
    """Returns the template of one pod, with the pool's `template` merged in.

    Raises BadInput if the pool's `template` cannot be merged.
    """
    labels = {**child_labels(pod.model, pod.pool), POD_REVISION_LABEL: pin.revision}
    if pod.serves_http:
        labels[ENDPOINT_LABEL] = "true"
    template: Manifest = {
        "metadata": {"labels": labels, "annotations": container.pod_info.annotations() if pod.serves_http else {}},
        "spec": _pod_spec(pod, container, pin, service_account),
    }
    overrides = pod.pool.template
    if overrides is None:
        return template
    metadata = merge_template(
        {"labels": overrides.metadata.labels, "annotations": overrides.metadata.annotations},
        template["metadata"],
        "metadata",
    )
    return {"metadata": metadata, "spec": merge_template(template["spec"], overrides.spec, "template.spec")}


def _pod_spec(pod: InstancePod, container: EngineContainer, pin: RenderPin, service_account: str) -> Manifest:
    drain = pod.spec.rollout.drain_seconds
    pull_secrets = [*pin.pull_secrets, *(secret.name for secret in pod.spec.engine.image_pull_secrets)]
    if container.weights is not None and container.weights.pull_secret is not None:
        pull_secrets.append(container.weights.pull_secret)
    spec: Manifest = {
        "serviceAccountName": service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service called vllm would set VLLM_PORT, which vLLM reads
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
    if pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in dict.fromkeys(pull_secrets)]
    if container.needs_devices:
        spec |= placement(pod.accelerator)
    if not pod.is_multi_node:
        spec["topologySpreadConstraints"] = [_topology_spread(pod, pod.pool)]
    return spec


def _container(pod: InstancePod, container: EngineContainer, pin: RenderPin) -> Manifest:
    fields: Manifest = {
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
        fields["securityContext"]["readOnlyRootFilesystem"] = True
    if container.weights is not None and container.weights.secret is not None:
        fields["envFrom"] = [{"secretRef": {"name": container.weights.secret}}]
    if container.health is not None:
        fields |= _probes(container.health, container.ports["http"])
    if container.drain is not None:
        fields["lifecycle"] = {"preStop": container.drain.prestop_hook(pod.spec.rollout.drain_seconds)}
    return {key: value for key, value in fields.items() if value != []}


def _env(container: EngineContainer, model_variables: list[EnvironmentVariable]) -> list[Manifest]:
    """Returns the environment. The model's variables replace ours, and may refer to ours."""
    variables = list(container.env)
    if container.needs_home:
        # Engines look up their user name for caches, which fails for an unknown user id.
        variables = [{"name": "HOME", "value": _HOME_FOLDER}, {"name": "USER", "value": "fairlead"}, *variables]
    merged = {variable["name"]: variable for variable in variables}
    for variable in model_variables:
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
    resources: Manifest = {}
    if requests:
        resources["requests"] = requests
    if container.needs_devices and (limits := device_requests(pod)):
        resources["limits"] = limits
    return resources


def _format_quantity(size: int) -> str:
    for unit, factor in (("Gi", 2**30), ("Mi", 2**20)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _volumes(container: EngineContainer) -> list[Manifest]:
    volumes: list[Manifest] = [{"name": "tmp", "emptyDir": {}}]
    if container.needs_home:
        volumes.append({"name": "home", "emptyDir": {}})
    if container.needs_shared_memory:
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": _SHARED_MEMORY_SIZE}})
    return [*volumes, *(container.weights.volumes if container.weights is not None else ()), *container.extra_volumes]


def _mounts(container: EngineContainer) -> list[Manifest]:
    mounts: list[Manifest] = [{"name": "tmp", "mountPath": "/tmp"}]
    if container.needs_home:
        mounts.append({"name": "home", "mountPath": _HOME_FOLDER})
    if container.needs_shared_memory:
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    return [*mounts, *(container.weights.mounts if container.weights is not None else ()), *container.extra_mounts]


def _probes(health: HealthProbe, port: int) -> Manifest:
    """Returns the probes: half an hour to load weights, then readiness within seconds.

    Liveness is patient: /health ignores draining and overload, and a busy engine may respond late.
    """
    http_check = {"httpGet": {"path": health.path, "port": port}, "timeoutSeconds": health.timeout}
    return {
        "startupProbe": {
            **http_check,
            "periodSeconds": health.startup_period,
            "failureThreshold": _START_SECONDS // health.startup_period,
        },
        "readinessProbe": {**http_check, "periodSeconds": health.period, "failureThreshold": 3},
        "livenessProbe": {**http_check, "periodSeconds": 10, "failureThreshold": health.liveness_failures},
    }


def _topology_spread(pod: InstancePod, pool: Pool) -> Manifest:
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector_labels(pod.model, pool)},
    }

"""The pod of an engine, render version 1: restricted Pod Security throughout, whatever the kind.

What is written here is what engines in the field run with: see ``revision.py`` before changing it.
"""

import math
from typing import Final

from fairlead.api import EnvironmentVariable, Pool
from fairlead.cluster_labels import ENDPOINT, REVISION
from fairlead.engines.pods import EngineContainer, Member
from fairlead.engines.pods.base import Health
from fairlead.kube.resource import Manifest
from fairlead_operator.render.accelerators import devices, placement
from fairlead_operator.render.merge import merge
from fairlead_operator.render.names import child_labels, selector_labels
from fairlead_operator.render.revision import Pin

CONTAINER: Final = "engine"
_USER: Final = 65_532
"""Any number but 0 will do, also one without an entry in the image's /etc/passwd."""
_HOME: Final = "/var/lib/fairlead/home"
_SHARED_MEMORY: Final = "16Gi"
"""The most that /dev/shm may take; it counts as the pod's memory only as far as it is used. The runtime's own has 64 MiB."""
_START_SECONDS: Final = 1800
_AFTER_DRAIN_SECONDS: Final = 30
"""From the end of the drain to SIGKILL: SIGTERM, and what an engine does of its own then."""


def pod_template(member: Member, made: EngineContainer, pin: Pin, service_account: str) -> Manifest:
    """One pod of one instance, the pool's own template merged in. Raises BadInput when that cannot be merged."""
    labels = {**child_labels(member.model, member.pool), REVISION: pin.revision}
    if member.answers:
        labels[ENDPOINT] = "true"
    template: Manifest = {
        "metadata": {"labels": labels, "annotations": made.notes.annotations() if member.answers else {}},
        "spec": _spec(member, made, pin, service_account),
    }
    own = member.pool.template
    if own is None:
        return template
    metadata = merge(
        {"labels": own.metadata.labels, "annotations": own.metadata.annotations}, template["metadata"], "metadata"
    )
    return {"metadata": metadata, "spec": merge(template["spec"], own.spec, "template.spec")}


def _spec(member: Member, made: EngineContainer, pin: Pin, service_account: str) -> Manifest:
    drain = member.spec.rollout.drain_seconds
    pull = [*pin.pull_secrets, *(secret.name for secret in member.spec.engine.image_pull_secrets)]
    if made.weights is not None and made.weights.pull_secret is not None:
        pull.append(made.weights.pull_secret)
    found: Manifest = {
        "serviceAccountName": service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service called vllm would set VLLM_PORT, which vLLM takes for its own
        "terminationGracePeriodSeconds": math.ceil(drain) + _AFTER_DRAIN_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(member, made, pin)],
        "volumes": _volumes(made),
    }
    if pull:
        found["imagePullSecrets"] = [{"name": name} for name in dict.fromkeys(pull)]
    if made.devices:
        found |= placement(member.accelerator)
    if not member.spans_nodes:
        found["topologySpreadConstraints"] = [_spread(member, member.pool)]
    return found


def _container(member: Member, made: EngineContainer, pin: Pin) -> Manifest:
    found: Manifest = {
        "name": CONTAINER,
        "image": member.spec.engine.image or pin.image,
        "command": list(made.command),
        "args": list(made.args),
        "env": _env(made, member.spec.engine.env),
        "ports": [{"name": name, "containerPort": port} for name, port in made.ports.items()],
        "resources": _resources(member, made),
        "volumeMounts": _mounts(made),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if made.read_only_root:
        found["securityContext"]["readOnlyRootFilesystem"] = True
    if made.weights is not None and made.weights.secret is not None:
        found["envFrom"] = [{"secretRef": {"name": made.weights.secret}}]
    if made.health is not None:
        found |= _probes(made.health, made.ports["http"])
    if made.drain is not None:
        found["lifecycle"] = {"preStop": made.drain.hook(member.spec.rollout.drain_seconds)}
    return {key: value for key, value in found.items() if value != []}


def _env(made: EngineContainer, own: list[EnvironmentVariable]) -> list[Manifest]:
    """The model's variables take the place of ours of the same name, and may refer to ours."""
    variables = list(made.env)
    if made.home:
        # Engines look their user up for names of caches; without a name the look-up of an unknown number fails.
        variables = [{"name": "HOME", "value": _HOME}, {"name": "USER", "value": "fairlead"}, *variables]
    merged = {one["name"]: one for one in variables}
    for variable in own:
        merged[variable.name] = variable.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude_defaults=True
        )
    return list(merged.values())


def _resources(member: Member, made: EngineContainer) -> Manifest:
    requests: dict[str, str] = {}
    if made.cpu_millis is not None:
        whole, rest = divmod(made.cpu_millis, 1000)
        requests["cpu"] = f"{made.cpu_millis}m" if rest else str(whole)
    if made.memory_bytes is not None:
        requests["memory"] = _quantity(made.memory_bytes)
    if made.disk_bytes is not None:
        requests["ephemeral-storage"] = _quantity(made.disk_bytes)
    found: Manifest = {}
    if requests:
        found["requests"] = requests
    if made.devices and (limits := devices(member)):
        found["limits"] = limits
    return found


def _quantity(size: int) -> str:
    for unit, factor in (("Gi", 2**30), ("Mi", 2**20)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def _volumes(made: EngineContainer) -> list[Manifest]:
    found: list[Manifest] = [{"name": "tmp", "emptyDir": {}}]
    if made.home:
        found.append({"name": "home", "emptyDir": {}})
    if made.shared_memory:
        found.append({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": _SHARED_MEMORY}})
    return [*found, *(made.weights.volumes if made.weights is not None else ()), *made.more_volumes]


def _mounts(made: EngineContainer) -> list[Manifest]:
    found: list[Manifest] = [{"name": "tmp", "mountPath": "/tmp"}]
    if made.home:
        found.append({"name": "home", "mountPath": _HOME})
    if made.shared_memory:
        found.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    return [*found, *(made.weights.mounts if made.weights is not None else ()), *made.more_mounts]


def _probes(health: Health, port: int) -> Manifest:
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


def _spread(member: Member, pool: Pool) -> Manifest:
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector_labels(member.model, pool)},
    }

"""Manifests that several tests need, with the least that restricted Pod Security asks for."""

from typing import Any

from fairlead import __version__
from scripts.release.images import components

Manifest = dict[str, Any]
PORT = 8000
API = "serving.fairlead.io/v1alpha1"
PACED_ENGINE = "e2e-paced"
SMALL_ENGINE = "e2e-narrow"


def image(component: str, tag: str | None = None) -> str:
    return f"{components.PREFIX}/{component}:{tag or __version__}"


def pod_spec(
    component: str,
    *arguments: str,
    command: tuple[str, ...] = (),
    ready: str | None = None,
    files: str | None = None,
) -> Manifest:
    """Returns the spec of one container under an unknown user id.

    ready: path of its probe.
    files: a ConfigMap at /etc/fairlead.
    command: replaces the image's own.
    """
    container: Manifest = {
        "name": component,
        "image": image(component),
        "imagePullPolicy": "IfNotPresent",
        "args": list(arguments),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    volumes: list[Manifest] = [{"name": "tmp", "emptyDir": {}}]
    if command:
        container["command"] = list(command)
    if ready is not None:
        container["readinessProbe"] = {"httpGet": {"path": ready, "port": PORT}, "periodSeconds": 1}
    if files is not None:
        container["volumeMounts"].append({"name": "files", "mountPath": "/etc/fairlead"})
        volumes.append({"name": "files", "configMap": {"name": files}})
    return {
        "terminationGracePeriodSeconds": 5,
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 31337, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": volumes,
    }


def resource(kind: str, name: str, /, **spec: Any) -> Manifest:
    """Returns a manifest with a specification."""
    own = kind.startswith(("Model", "Accelerator"))
    api = API if own else "apps/v1" if kind == "Deployment" else "v1"
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec}


def pod(name: str, spec: Manifest) -> Manifest:
    return resource("Pod", name, **spec)


def deployment(name: str, spec: Manifest, *, replicas: int = 1) -> Manifest:
    """Pods of this kind, labelled ``app: name``."""
    template = {"metadata": {"labels": {"app": name}}, "spec": spec}
    selector = {"matchLabels": {"app": name}}
    return resource("Deployment", name, replicas=replicas, selector=selector, template=template)


def small_engine() -> Manifest:
    """An accelerator that carries four streams at once, each with 20 tokens a second: of 40 tokens,
    two a second."""
    return _slow_engine(SMALL_ENGINE, kvTokens=65_536, maxSequences=4)


def _slow_engine(name: str, **limits: int) -> Manifest:
    profile = {"preset": "tiny-cpu", "stepSeconds": "44500u", "sequenceSeconds": 0, "stepTokens": 8_192, **limits}
    return resource("AcceleratorClass", name, profile=profile)


def service(name: str, port: int = PORT) -> Manifest:
    return resource("Service", name, selector={"app": name}, ports=[{"port": port, "targetPort": port}])


def config_map(name: str, **files: str) -> Manifest:
    data = {key.replace("__", "."): text for key, text in files.items()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def model(name: str, *, replicas: int = 1, **spec: Any) -> Manifest:
    """Returns a ModelDeployment with one pool of simulated engines, ``PACED`` ones.

    spec: overrides the defaults.
    """
    fixed: Manifest = {
        "model": {"uri": "hf://Qwen/Qwen3-8B"},
        "engine": {"type": "Sim"},
        "pools": [{"acceleratorClassName": PACED_ENGINE, "minReplicas": replicas}],
    }
    return resource("ModelDeployment", name, **fixed | spec)


def paced_engine() -> Manifest:
    """An accelerator on which every stream gets 20 tokens a second, however many there are."""
    return _slow_engine(PACED_ENGINE, kvTokens=262_144, maxSequences=256)

"""Additions to the containers of all engines, whatever their kind.

Models without `spec.adapters.claimNames` and `spec.adapters.download` are rendered as they were, in
every render version.

Some switches bound what requests make an engine do.

- Media: a request names images, audio and videos by URL, and the engine fetches them. Without a
  list of domains vLLM and SGLang fetch any URL, also one inside the cluster.
- Block hashes: engines that share blocks start with a known seed. Their hash must then be one
  without known collisions.
"""

from dataclasses import replace
from typing import Any, Final

from fairlead import units
from fairlead.adapters.download import DOWNLOADER_PORT, DOWNLOADS_FOLDER
from fairlead.adapters.resolution import ADAPTERS_FOLDER
from fairlead.api.spec.adapters import DownloadSettings
from fairlead.api.spec.engine import ANY_DOMAIN, EngineType
from fairlead.engines.containers.base import EngineContainer, InstancePod, env_value
from fairlead.engines.facts import MediaSource, kinds_with
from fairlead.errors import BadInput

DOWNLOADER_NAME: Final = "adapter-downloader"
_VOLUME: Final = "adapter-downloads"
_CREDENTIALS_VOLUME: Final = "adapter-credentials"
_CREDENTIALS_FOLDER: Final = "/var/run/fairlead/adapter-credentials"
_VOLUME_SHARE: Final = 0.95
"""The share of the volume that downloads may fill. A pod that fills more than all is evicted."""
NO_MEDIA_DOMAIN: Final = "media.invalid"
"""A domain that never resolves (RFC 2606). Both engines read an empty list as *all domains*."""
_LISTING_ENGINES: Final = kinds_with(lambda facts: facts.media is MediaSource.LISTED)


def with_adapter_claims(pod: InstancePod, container: EngineContainer) -> EngineContainer:
    """Returns the container with the claims, each in a folder of its name and only to read.

    Simulated engines mount none: they read no weights.
    """
    adapters = pod.spec.adapters
    if adapters is None or not adapters.claim_names or pod.spec.engine.type is EngineType.SIM:
        return container
    for number, claim in enumerate(adapters.claim_names):
        volume = {"name": f"adapters-{number}", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        container = _with_volume(container, volume, f"{ADAPTERS_FOLDER}/{claim}")
    return container


def _with_volume(container: EngineContainer, volume: dict[str, Any], path: str) -> EngineContainer:
    """Returns the container with a volume that it mounts, only to read."""
    mount = {"name": volume["name"], "mountPath": path, "readOnly": True}
    return replace(
        container, extra_volumes=(*container.extra_volumes, volume), extra_mounts=(*container.extra_mounts, mount)
    )


def _download_settings(pod: InstancePod) -> DownloadSettings | None:
    """Returns the settings of the pod's downloader; None for a pod without one.

    Pods of instances on several nodes have none.
    """
    adapters = pod.spec.adapters
    return None if adapters is None or pod.is_multi_node else adapters.download


def with_adapter_download(pod: InstancePod, container: EngineContainer) -> EngineContainer:
    """Returns the container with the volume of downloads."""
    settings = _download_settings(pod)
    if settings is None:
        return container
    container = _with_volume(container, {"name": _VOLUME, "emptyDir": {"sizeLimit": settings.size}}, DOWNLOADS_FOLDER)
    if settings.credentials is None:
        return container
    secret = {"name": _CREDENTIALS_VOLUME, "secret": {"secretName": settings.credentials.secret_ref.name}}
    return replace(container, extra_volumes=(*container.extra_volumes, secret))


def downloader_container(pod: InstancePod, image: str | None) -> dict[str, Any] | None:
    """Returns the sidecar container that downloads; None for a pod without one.

    It has no startup or readiness probe: an engine serves its base model without it.

    image: None if the installation has none.

    Raises BadInput without an image.
    """
    settings = _download_settings(pod)
    if settings is None:
        return None
    if image is None:
        message = "the installation has no image for the downloader of adapters"
        raise BadInput(message, field="spec.adapters.download", hint="set FAIRLEAD_DOWNLOADER_IMAGE of the operator")
    max_bytes = int(units.parse_size(settings.size) * _VOLUME_SHARE)
    args = [
        f"--host={pod.host}",
        f"--port={DOWNLOADER_PORT}",
        f"--folder={DOWNLOADS_FOLDER}",
        f"--max-bytes={max_bytes}",
    ]
    mounts: list[dict[str, Any]] = [{"name": _VOLUME, "mountPath": DOWNLOADS_FOLDER}]
    fields: dict[str, Any] = {
        "name": DOWNLOADER_NAME,
        "image": image,
        "restartPolicy": "Always",
        "command": ["python3", "-m", "fairlead_downloader"],
        "args": args,
        "ports": [{"name": "downloads", "containerPort": DOWNLOADER_PORT}],
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": DOWNLOADER_PORT},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
    if settings.credentials is not None:
        args.append(f"--credentials={_CREDENTIALS_FOLDER}")
        mounts.append({"name": _CREDENTIALS_VOLUME, "mountPath": _CREDENTIALS_FOLDER, "readOnly": True})
        fields["envFrom"] = [{"secretRef": {"name": settings.credentials.secret_ref.name}}]
    return fields


def with_request_limits(pod: InstancePod, container: EngineContainer) -> EngineContainer:
    """Returns the container with the switches. `engine.args` and `engine.env` replace them."""
    engine = pod.spec.engine
    variables = container.env
    switches: tuple[str, ...] = ()
    if engine.type is EngineType.VLLM and any(variable["name"] == "PYTHONHASHSEED" for variable in variables):
        switches += ("--prefix-caching-hash-algo=sha256",)
    if engine.type.label in _LISTING_ENGINES and pod.serves_http:
        domains = engine.allowed_media_domains or [NO_MEDIA_DOMAIN]
        if domains != [ANY_DOMAIN]:
            # Both parsers take the domains as separate arguments up to the next switch.
            switches = ("--allowed-media-domains", *domains, *switches)
        if engine.type is EngineType.VLLM:
            variables += (env_value("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0"),)
    return replace(container, args=(*container.args[:1], *switches, *container.args[1:]), env=variables)

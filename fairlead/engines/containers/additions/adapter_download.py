"""The container that downloads LoRA adapters for an engine, and the volume between the two.

Models without `spec.adapters.download` are rendered as they were, in every render version.
"""

from dataclasses import replace
from typing import Any, Final

from fairlead import units
from fairlead.adapters.download import DOWNLOADER_PORT, DOWNLOADS_FOLDER
from fairlead.api.spec.adapters import DownloadSettings
from fairlead.engines.containers.base import EngineContainer, InstancePod
from fairlead.errors import BadInput

DOWNLOADER_NAME: Final = "adapter-downloader"
_VOLUME: Final = "adapter-downloads"
_CREDENTIALS_VOLUME: Final = "adapter-credentials"
_CREDENTIALS_FOLDER: Final = "/var/run/fairlead/adapter-credentials"
_VOLUME_SHARE: Final = 0.95
"""The share of the volume that downloads may fill. A pod that fills more than all is evicted."""


def _download_settings(pod: InstancePod) -> DownloadSettings | None:
    """Returns the settings of the pod's downloader; None for a pod without one.

    Pods of instances on several nodes have none.
    """
    adapters = pod.spec.adapters
    return None if adapters is None or pod.is_multi_node else adapters.download


def _secret_name(settings: DownloadSettings) -> str | None:
    return None if settings.credentials is None else settings.credentials.secret_ref.name


def with_adapter_download(pod: InstancePod, container: EngineContainer) -> EngineContainer:
    """Returns the container with the volume of downloads."""
    settings = _download_settings(pod)
    if settings is None:
        return container
    secret = _secret_name(settings)
    volumes: list[dict[str, Any]] = [{"name": _VOLUME, "emptyDir": {"sizeLimit": settings.size}}]
    if secret is not None:
        volumes.append({"name": _CREDENTIALS_VOLUME, "secret": {"secretName": secret}})
    return replace(
        container,
        extra_volumes=(*container.extra_volumes, *volumes),
        extra_mounts=(
            *container.extra_mounts,
            {"name": _VOLUME, "mountPath": DOWNLOADS_FOLDER, "readOnly": True},
        ),
    )


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
    secret = _secret_name(settings)
    max_bytes = int(units.parse_size(settings.size) * _VOLUME_SHARE)
    args = [
        f"--host={pod.host}",
        f"--port={DOWNLOADER_PORT}",
        f"--folder={DOWNLOADS_FOLDER}",
        f"--max-bytes={max_bytes}",
    ]
    mounts: list[dict[str, Any]] = [
        {"name": _VOLUME, "mountPath": DOWNLOADS_FOLDER},
    ]
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
    if secret is not None:
        args.append(f"--credentials={_CREDENTIALS_FOLDER}")
        mounts.append({"name": _CREDENTIALS_VOLUME, "mountPath": _CREDENTIALS_FOLDER, "readOnly": True})
        fields["envFrom"] = [{"secretRef": {"name": secret}}]
    return fields

"""The container that downloads LoRA adapters for an engine, and the volume between the two.

Models without `spec.adapters.download` are rendered as they were, in every render version.
"""

from dataclasses import replace
from typing import Any, Final

from fairlead import units
from fairlead.adapters.download import DOWNLOADER_PORT, DOWNLOADS_FOLDER
from fairlead.engines.containers.base import EngineContainer, InstancePod
from fairlead.errors import BadInput

DOWNLOADER_NAME: Final = "adapter-downloader"
_VOLUME: Final = "adapter-downloads"
_CREDENTIALS_VOLUME: Final = "adapter-credentials"
_CREDENTIALS_FOLDER: Final = "/var/run/fairlead/adapter-credentials"
_VOLUME_SHARE: Final = 0.95
"""The share of the volume that downloads may fill. A pod that fills more than all is evicted."""


def has_downloader(pod: InstancePod) -> bool:
    """Returns whether a pod downloads adapters. Those of instances on several nodes do not."""
    adapters = pod.spec.adapters
    return adapters is not None and adapters.download is not None and not pod.is_multi_node


def with_adapter_download(pod: InstancePod, container: EngineContainer, image: str | None) -> EngineContainer:
    """Returns the container with its downloader.

    image: of the downloader; None if the installation has none.

    Raises BadInput without an image.
    """
    adapters = pod.spec.adapters
    if adapters is None or adapters.download is None or not has_downloader(pod):
        return container
    if image is None:
        message = "the installation has no image for the downloader of adapters"
        raise BadInput(message, field="spec.adapters.download", hint="set FAIRLEAD_DOWNLOADER_IMAGE of the operator")
    settings = adapters.download
    secret = None if settings.credentials is None else settings.credentials.secret_ref.name
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
        sidecars=(*container.sidecars, _sidecar(pod, image, settings.size, secret)),
    )


def _sidecar(pod: InstancePod, image: str, size: str, secret: str | None) -> dict[str, Any]:
    """Returns the container of the downloader.

    It has no startup or readiness probe: an engine serves its base model without it.
    """
    max_bytes = int(units.parse_size(size) * _VOLUME_SHARE)
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

"""Renders pod templates in the render version that a pool is pinned to.

- 1: release 0.1.
- 2: engines fetch media from listed domains only, and pin the hash of blocks that they share.
"""

from collections.abc import Callable, Mapping
from typing import Final

from fairlead.engines.containers import EngineContainer, InstancePod, container_builders
from fairlead.engines.containers.additions.adapter_claims import with_adapter_claims
from fairlead.engines.containers.additions.adapter_download import downloader_container, with_adapter_download
from fairlead.engines.containers.additions.request_limits import with_request_limits
from fairlead.kube.resources import Manifest
from fairlead_operator.render import pod_template as pod
from fairlead_operator.render.revision import RenderPin

_TemplateRenderer = Callable[[InstancePod, EngineContainer, RenderPin, str], Manifest]


def _with_request_limits(
    instance: InstancePod, container: EngineContainer, pin: RenderPin, service_account: str
) -> Manifest:
    return pod.pod_template(instance, with_request_limits(instance, container), pin, service_account)


_VERSIONS: Final[Mapping[int, _TemplateRenderer]] = {1: pod.pod_template, 2: _with_request_limits}


def supported_versions() -> frozenset[int]:
    """Returns the versions that this release can render."""
    return frozenset(_VERSIONS)


def render_template(pod: InstancePod, pin: RenderPin, service_account: str) -> Manifest:
    """Returns the pod template. Raises BadInput for features that the engine lacks, or a failed
    merge.
    """
    container = with_adapter_claims(pod, container_builders()[pod.spec.engine.type](pod))
    template = _VERSIONS[pin.version](pod, with_adapter_download(pod, container), pin, service_account)
    downloader = downloader_container(pod, pin.downloader_image)
    if downloader is not None:
        spec = template["spec"]
        spec["initContainers"] = [downloader, *spec.get("initContainers", [])]
    return template

"""Renders pod templates in the render version that a pool is pinned to."""

from collections.abc import Callable, Mapping
from typing import Final

from fairlead.engines.containers import EngineContainer, InstancePod, container_builders
from fairlead.kube.resources import Manifest
from fairlead_operator.render import pod_template as pod
from fairlead_operator.render.revision import RenderPin

_TemplateRenderer = Callable[[InstancePod, EngineContainer, RenderPin, str], Manifest]
_VERSIONS: Final[Mapping[int, _TemplateRenderer]] = {1: pod.pod_template}


def supported_versions() -> frozenset[int]:
    """Returns the versions that this release can render."""
    return frozenset(_VERSIONS)


def render_template(pod: InstancePod, pin: RenderPin, service_account: str) -> Manifest:
    """Returns the pod template. Raises BadInput for features that the engine lacks, or a failed
    merge.
    """
    container = container_builders()[pod.spec.engine.type](pod)
    return _VERSIONS[pin.version](pod, container, pin, service_account)

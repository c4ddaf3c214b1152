"""Renders pod templates in the render version that a pool is pinned to.

- 1: release 0.2.
"""

from collections.abc import Callable, Mapping
from typing import Final

from fairlead.engines.containers import EngineContainer, InstancePod, container_builders
from fairlead.engines.containers.additions import (
    downloader_container,
    with_adapter_claims,
    with_adapter_download,
    with_request_limits,
)
from fairlead.kube.resources import Manifest
from fairlead_operator.render.contradicted_defaults import drop_contradicted_defaults
from fairlead_operator.render.pod_template import pod_template
from fairlead_operator.render.revision import RenderPin
from fairlead_operator.render.template_overrides import merge_template

_USER_FIELDS: Final = ("runAsUser", "runAsGroup", "fsGroup")
TemplateRenderer = Callable[[InstancePod, EngineContainer, RenderPin, str], Manifest]


def _version_1(pod: InstancePod, container: EngineContainer, pin: RenderPin, service_account: str) -> Manifest:
    template = pod_template(pod, with_request_limits(pod, container), pin, service_account)
    drop_contradicted_defaults(template["spec"], pod.pool.template.spec if pod.pool.template else {})
    return template


def _drop_default_users(template: Manifest, pod: InstancePod) -> None:
    """Removes users and groups that the pool's own template does not name.

    Clusters that assign users, such as OpenShift's, refuse pods that name others.
    """
    own = {} if pod.pool.template is None else pod.pool.template.spec.get("securityContext") or {}
    context = template["spec"].get("securityContext") or {}
    for name in _USER_FIELDS:
        if name not in own:
            context.pop(name, None)


RENDERERS: Final[Mapping[int, TemplateRenderer]] = {1: _version_1}


def supported_versions() -> frozenset[int]:
    return frozenset(RENDERERS)


def render_template(pod: InstancePod, pin: RenderPin, service_account: str) -> Manifest:
    """Returns the pod template. Raises BadInput for features that the engine lacks, or a failed
    merge.
    """
    container = with_adapter_claims(pod, container_builders()[pod.spec.engine.type](pod))
    template = RENDERERS[pin.version](pod, with_adapter_download(pod, container), pin, service_account)
    if pin.assigned_user:
        _drop_default_users(template, pod)
    downloader = downloader_container(pod, pin.downloader_image)
    if downloader is not None:
        own = {} if pod.pool.template is None else pod.pool.template.spec
        patch = {"initContainers": own.get("initContainers") or []}
        template["spec"] |= merge_template({"initContainers": [downloader]}, patch, "template.spec")
        drop_contradicted_defaults(template["spec"], own)
    return template

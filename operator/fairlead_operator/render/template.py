"""The pod template in the render version that a pool is pinned to."""

from collections.abc import Callable, Mapping
from typing import Final

from fairlead.engines.pods import EngineContainer, Member, container_makers
from fairlead.kube.resource import Manifest
from fairlead_operator.render import pod
from fairlead_operator.render.revision import Pin

_Template = Callable[[Member, EngineContainer, Pin, str], Manifest]
_VERSIONS: Final[Mapping[int, _Template]] = {1: pod.pod_template}


def versions() -> frozenset[int]:
    """Those that this release can still render."""
    return frozenset(_VERSIONS)


def template(member: Member, pin: Pin, service_account: str) -> Manifest:
    """Raises BadInput, naming the field, for what the engine cannot do or what cannot be merged."""
    made = container_makers()[member.spec.engine.kind](member)
    return _VERSIONS[pin.version](member, made, pin, service_account)

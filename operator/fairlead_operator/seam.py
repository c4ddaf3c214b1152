"""What the loop asks of rendering: a pure function from a model to its children, and what comes back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fairlead.api import AcceleratorClass, ModelDeployment, Reason
from fairlead.kube.resources import Manifest
from fairlead_operator.render.context import ClusterCapabilities


class Problem(Protocol):
    """Why a part of the spec cannot be carried out."""

    @property
    def reason(self) -> Reason:
        """Of the closed list."""
        ...

    @property
    def message_with_fix(self) -> str:
        """A sentence for people, which names the field and the fix."""
        ...


class Rendered(Protocol):
    """What a model becomes. With a problem the list may be incomplete: nothing is pruned then."""

    @property
    def manifests(self) -> Sequence[Manifest]:
        """The children, without owners."""
        ...

    @property
    def problems(self) -> Sequence[Problem]:
        """What stands in the way of the rest."""
        ...


@dataclass(frozen=True, slots=True)
class World:
    """What rendering may know of the cluster. ``workloads``: those that run the model's pools already; they carry what they were
    rendered with, so that an upgrade of the operator renders them the same.

    ``foreign``: names in the model's namespace that belong to somebody else.
    """

    workloads: tuple[Manifest, ...] = ()
    foreign: frozenset[str] = frozenset()
    cluster: ClusterCapabilities = field(default_factory=ClusterCapabilities)


class Render(Protocol):
    """Rendering, handed to the loop in ``__main__``."""

    def __call__(self, model: ModelDeployment, accelerators: Mapping[str, AcceleratorClass], world: World) -> Rendered:
        """The children of ``model``. ``accelerators`` are the cluster's own classes, by name."""
        ...

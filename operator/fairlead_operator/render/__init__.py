"""ModelDeployment → the objects that run it. Pure: the same input always gives the same manifests, byte for byte.

``render`` is the whole; one file a child, and one for each thing that several children need.
"""

from fairlead_operator.render.context import (
    AllowedPeer,
    ExistingWorkload,
    InstallationDefaults,
    RenderContext,
    existing_workload,
)
from fairlead_operator.render.errors import RenderProblem
from fairlead_operator.render.model import RenderedModel, render_model
from fairlead_operator.render.revision import CURRENT_VERSION, RenderPin, parse_pin, pool_revision

__all__ = [
    "CURRENT_VERSION",
    "AllowedPeer",
    "ExistingWorkload",
    "InstallationDefaults",
    "RenderContext",
    "RenderPin",
    "RenderProblem",
    "RenderedModel",
    "existing_workload",
    "parse_pin",
    "pool_revision",
    "render_model",
]

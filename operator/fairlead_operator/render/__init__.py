"""Renders a ModelDeployment into Kubernetes objects. Pure: equal input gives equal bytes.

- `model`: the whole; `context`: its input besides the model.
- `pool_context`: the input of one pool's objects, which `children/` render.
- `pod_template`, `template_versions`, `template_overrides`: pods.
- `revision`: pinned revisions, so that upgrades restart no engine.
- `accelerators`, `names`, `errors`: shared parts.
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

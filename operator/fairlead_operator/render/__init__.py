"""ModelDeployment → the objects that run it. Pure: the same input always gives the same manifests, byte for byte.

``render`` is the whole; one file a child, and one for each thing that several children need.
"""

from fairlead_operator.render.facts import Child, Facts, Installation, Peer, child_of
from fairlead_operator.render.model import Rendered, render
from fairlead_operator.render.problems import Problem
from fairlead_operator.render.revision import CURRENT_VERSION, Pin, pin_of, pool_revision

__all__ = [
    "CURRENT_VERSION",
    "Child",
    "Facts",
    "Installation",
    "Peer",
    "Pin",
    "Problem",
    "Rendered",
    "child_of",
    "pin_of",
    "pool_revision",
    "render",
]

"""Rendering as the loop asks for it: what it saw of the cluster, with what the installation decides, in ``render``'s own words."""

from collections.abc import Mapping

from fairlead.api import AcceleratorClass, ModelDeployment
from fairlead.fleet.labels import POOL_LABEL
from fairlead.kube.resources import LEADER_WORKER_SETS
from fairlead_operator.object_metadata import label
from fairlead_operator.render import AllowedPeer, InstallationDefaults, RenderContext, existing_workload, render_model
from fairlead_operator.seam import Render, Rendered, World


def renderer(installation: InstallationDefaults, peers: tuple[AllowedPeer, ...] | None) -> Render:
    """``render`` in this installation. Without ``peers`` no NetworkPolicy is made."""

    def rendered(model: ModelDeployment, accelerators: Mapping[str, AcceleratorClass], world: World) -> Rendered:
        facts = RenderContext(
            installation=installation,
            workloads={label(one, POOL_LABEL): existing_workload(one) for one in world.workloads},
            foreign_names=world.foreign,
            peers=peers,
            leader_worker_sets=(LEADER_WORKER_SETS.api_version, LEADER_WORKER_SETS.kind) in world.cluster.served_kinds,
            ipv6=world.cluster.ipv6,
        )
        return render_model(model, accelerators, facts)

    return rendered

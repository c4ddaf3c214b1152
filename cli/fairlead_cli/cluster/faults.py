"""The faults that ``fairlead check`` must name: a closed list, which the page of the checks shows and tests seed."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Fault:
    """One that happens in clusters, and the check that names it. Tests seed each; alert rules fire on the same."""

    name: str
    check: str
    seeded: str


FAULTS: Final = (
    Fault("operator-down", "operator-ready", "no pod of the operator is ready"),
    Fault(
        "operator-not-leading",
        "operator-leader",
        "pods are ready, and nobody has renewed the lease for longer than it lasts",
    ),
    Fault("operator-right-removed", "operator-rights", "a rule is taken out of the operator's role"),
    Fault("crd-outdated", "crd-schema", "the CRD of ModelDeployments is that of an older release"),
    Fault("keys-missing", "gateway-keys", "the Secret with API keys is deleted"),
    Fault("fleet-stale", "gateway-fleet", "a gateway can no longer list or watch"),
    Fault("redis-unreachable", "redis", "Redis is gone while gateways run"),
    Fault("image-unpullable", "model-image", "a model names an image that does not exist"),
    Fault("accelerator-unschedulable", "model-capacity", "a model asks for more devices than any node has"),
    Fault("credentials-missing", "model-references", "`model.credentials` names a Secret that does not exist"),
)
"""The ten."""

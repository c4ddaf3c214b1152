"""Faults that ``fairlead check`` must name: a closed list, which the reference page shows and tests
seed.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class SeededFault:
    """A fault that happens in clusters, and the check that names it. Tests seed each; alert rules
    fire on the same faults.
    """

    name: str
    check: str
    how: str


SEEDED_FAULTS: Final = (
    SeededFault("operator-down", "operator-ready", "no pod of the operator is ready"),
    SeededFault(
        "operator-not-leading",
        "operator-leader",
        "pods are ready, and the lease was not renewed for longer than it lasts",
    ),
    SeededFault("operator-right-removed", "operator-rights", "a rule is taken out of the operator's role"),
    SeededFault("crd-outdated", "crd-schema", "the CRD of ModelDeployments is that of an older release"),
    SeededFault("keys-missing", "gateway-keys", "the Secret with API keys is deleted"),
    SeededFault("fleet-stale", "gateway-fleet", "a gateway can no longer list or watch"),
    SeededFault("redis-unreachable", "redis", "Redis is gone while gateways run"),
    SeededFault("image-unpullable", "model-image", "a model names an image that does not exist"),
    SeededFault("accelerator-unschedulable", "model-capacity", "a model asks for more devices than any node has"),
    SeededFault("credentials-missing", "model-references", "`model.credentials` names a Secret that does not exist"),
)

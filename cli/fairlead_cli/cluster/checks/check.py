"""The description of one check, its section, and when it applies."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fairlead.distribution import ADDRESSES

_REFERENCE_PAGE: Final = "reference/checks.html"


OLDEST_KUBERNETES: Final = (1, 30)
"""As in the chart's ``kubeVersion``; a test holds the two equal."""


class CheckSection(StrEnum):
    """Headings in the order of output; a section depends on those above it."""

    API = "kubernetes-api"
    PERMISSIONS = "permissions"
    CLUSTER = "cluster"
    CRDS = "crds"
    OPERATOR = "operator"
    GATEWAY = "gateway"
    INDEXER = "indexer"
    AUTOSCALER = "autoscaler"
    MODELS = "models"
    SECURITY = "security"
    VERSIONS = "versions"


class CheckStage(StrEnum):
    """When a check applies: before an installation (``--pre``), after it, or both."""

    PRE = "pre"
    POST = "post"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Check:
    """A check. ``title`` states what should be true; ``meaning`` and ``remedy`` are for the
    reference page.
    """

    id: str
    section: CheckSection
    stage: CheckStage
    title: str
    meaning: str
    remedy: str

    @property
    def anchor(self) -> str:
        """The check's heading in the documentation: an address, or a path inside of the site."""
        return f"{ADDRESSES.documentation_page(_REFERENCE_PAGE)}#{self.id}"

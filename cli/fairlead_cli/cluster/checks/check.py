"""Check."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

REFERENCE_PAGE: Final = "docs/reference/checks.md"


OLDEST_KUBERNETES: Final = (1, 30)
"""As in the chart's ``kubeVersion``; a test holds the two equal."""


class CheckSection(StrEnum):
    """The headings, in the order in which they are printed: what is below rests on what is above."""

    API = "kubernetes-api"
    PERMISSIONS = "permissions"
    CLUSTER = "cluster"
    CRDS = "crds"
    OPERATOR = "operator"
    GATEWAY = "gateway"
    INDEXER = "indexer"
    MODELS = "models"
    SECURITY = "security"
    VERSIONS = "versions"


class CheckStage(StrEnum):
    """Before an installation (``--pre``), after it, or both."""

    PRE = "pre"
    POST = "post"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Check:
    """``says`` is the line that is printed, in the form of what should be so; ``means`` and ``do`` are for who reads on."""

    id: str
    section: CheckSection
    stage: CheckStage
    title: str
    meaning: str
    remedy: str

    @property
    def anchor(self) -> str:
        """Where the documentation has it."""
        return f"{REFERENCE_PAGE}#{self.id}"

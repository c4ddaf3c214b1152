"""The operator's process as its controllers see it: a seam at which tests put a harness."""

from typing import Protocol

from fairlead.kube.events.event import EventDraft
from fairlead.kube.resources import Manifest
from fairlead_operator.canary.judge import Judgement
from fairlead_operator.canary.progress import CanaryState
from fairlead_operator.render.context import ClusterCapabilities


class ManagerInterface(Protocol):
    """The process in which a controller runs, `Manager`."""

    @property
    def is_leading(self) -> bool:
        """True while this process may write."""

    @property
    def capabilities(self) -> ClusterCapabilities:
        """The features of the cluster."""

    def stale_cache_reason(self) -> str:
        """Returns why the object cache may be out of date; empty if it is fresh."""

    def record_event(self, model: Manifest, event: EventDraft) -> None:
        """Records an event about a model."""

    def ignore_self_event(self, key: str) -> None:
        """Ignores the event of our own write, which came before the API server's response."""

    def judgement(self, key: str, state: CanaryState | None) -> Judgement | None:
        """Returns the latest judgement on the step of a model's canary; None if there is none."""

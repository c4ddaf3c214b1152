"""A ModelDeployment on the cluster as tests look at it: its conditions, its pods, and waiting for
both."""

from dataclasses import dataclass

from e2e.kube.cluster_access.kubectl import Kubectl, Manifest, eventually
from fairlead.kube.resources import is_ready


@dataclass(frozen=True, slots=True)
class DeployedModel:
    """The one of this name in the namespace of ``here``."""

    here: Kubectl
    name: str

    def get(self) -> Manifest:
        return self.here.get("modeldeployment", self.name)

    def patch(self, spec: Manifest) -> None:
        self.here.patch(f"modeldeployment/{self.name}", {"spec": spec})

    def condition(self, kind: str) -> Manifest:
        """Returns one of its conditions; empty where there is none."""
        conditions = self.get().get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == kind), {})

    def pods(self, *, going: bool = False) -> dict[str, Manifest]:
        """Its pods by uid; with ``going`` those too that finish their requests."""
        listed = self.here.get("pods", "-l", f"fairlead.io/model={self.name}")["items"]
        return {
            manifest["metadata"]["uid"]: manifest
            for manifest in listed
            if going or "deletionTimestamp" not in manifest["metadata"]
        }

    def ready_pods(self) -> list[Manifest]:
        return [pod for pod in self.pods().values() if is_ready(pod)]

    def wait_until_settled(self, *, pods: int | None = None, seconds: float = 120.0) -> dict[str, Manifest]:
        """Wait until it is ready with what its spec says now, nothing moves, and it has so many
        pods; these, by uid."""
        found: dict[str, Manifest] = {}

        def is_so() -> bool:
            model = self.get()
            status = model.get("status", {})
            conditions = {one["type"]: one["status"] for one in status.get("conditions", [])}
            # How many are wanted, and the short name, which a model of an earlier run still has.
            for other in ("Autoscaling", "SLOMet", "NameTaken"):
                conditions.pop(other, None)
            found.clear()
            found.update(self.pods(going=True))
            ready = status.get("observedGeneration") == model["metadata"]["generation"] and conditions == {
                "Ready": "True"
            }
            return ready and (pods is None or len(found) == pods)

        describe = lambda: f"{self.get().get('status')} {[_state_of(pod) for pod in found.values()]}"  # noqa: E731
        eventually(f"{self.name} is settled", is_so, seconds=seconds, describe=describe)
        return found

    def wait_until_stalled(self, reason: str, seconds: float = 60.0) -> str:
        """Waits until it is stalled for this reason; returns the message."""
        is_so = lambda: self.condition("Stalled").get("reason") == reason  # noqa: E731
        eventually(f"{self.name} says {reason}", is_so, seconds=seconds, describe=lambda: str(self.get().get("status")))
        return str(self.condition("Stalled")["message"])


def _state_of(pod: Manifest) -> Manifest:
    """Returns the part of a pod that a failed wait prints."""
    times = {key: value for key, value in pod["metadata"].items() if key.startswith("deletion") or key == "name"}
    containers = [(one["name"], one["state"]) for one in pod["status"].get("containerStatuses", [])]
    return {**times, "phase": pod["status"].get("phase"), "containers": containers}

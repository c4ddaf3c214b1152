"""Everything that moves in the life of a model, one after the other, while streams come at a
constant rate."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from e2e.kube.cluster_access.kubectl import cores_used, cpu_seconds
from e2e.kube.workloads.client_pods import ClientPod, StreamSession
from e2e.kube.workloads.helm_release import GATEWAY, OPERATOR, HelmRelease
from e2e.kube.workloads.model_deployments import DeployedModel


@dataclass(frozen=True, slots=True)
class LifecycleChanges:
    """Changes in the life of a model that has two engines at the beginning and at the end.
    ``engine`` is the image of the next release."""

    release: HelmRelease
    client: ClientPod
    model: DeployedModel
    engine: str

    def replace_engines(self) -> None:
        """A change of the spec: new engines first, old ones once they are idle."""
        before = self.model.wait_until_settled(pods=2)
        self.model.patch({"engine": {"env": [{"name": "ROUND", "value": "2"}]}})
        after = self.model.wait_until_settled(pods=2)
        assert not before.keys() & after.keys()

    def replace_gateways(self) -> None:
        """As after a change of their settings, until the former ones have drained."""
        before = set(self.release.pods("gateway"))
        self.release.here.run("rollout", "restart", f"deployment/{GATEWAY}")
        self.release.here.wait_for_rollout(f"deployment/{GATEWAY}", seconds=120)
        self.release.wait_until_replaced("gateway", before)

    def replace_operator(self) -> None:
        """Both replicas, so that the lease changes hands."""
        before, engines = set(self.release.pods("operator")), self.model.pods()
        self.release.here.run("rollout", "restart", f"deployment/{OPERATOR}")
        self.release.here.wait_for_rollout(f"deployment/{OPERATOR}", seconds=120)
        self.release.wait_until_replaced("operator", before)
        assert self.model.wait_until_settled(pods=2).keys() == engines.keys()

    def upgrade_fairlead(self) -> None:
        """To other images of everything, that of engines included: no engine may notice."""
        before = {part: set(self.release.pods(part)) for part in ("operator", "gateway", "redis")}
        engines = self.model.pods()
        tag = {"image": {"tag": "next"}}
        self.release.upgrade(operator=tag, gateway=tag, redis=tag, engines={"images": {"sim": self.engine}})
        for part, pods in before.items():
            self.release.wait_until_replaced(part, pods)
        assert self.model.wait_until_settled(pods=2).keys() == engines.keys()

    def scale_to_six(self) -> None:
        self.model.here.run("scale", f"modeldeployment/{self.model.name}", "--replicas=6")
        self.model.wait_until_settled(pods=6)

    def evict_half(self) -> None:
        """By the Eviction API, as a node that is drained does it: the disruption budget decides
        when."""
        before = self.model.pods()
        for pod in list(before.values())[::2]:
            self.model.here.evict(pod["metadata"]["name"])
        after = self.model.wait_until_settled(pods=6, seconds=180)
        assert len(before.keys() & after.keys()) == 3

    def scale_to_two(self) -> None:
        self.model.here.run("scale", f"modeldeployment/{self.model.name}", "--replicas=2")
        self.model.wait_until_settled(pods=2, seconds=180)

    def all(self) -> tuple[Callable[[], None], ...]:
        """In this order."""
        return (
            self.replace_engines,
            self.replace_gateways,
            self.replace_operator,
            self.scale_to_six,
            self.evict_half,
            self.scale_to_two,
            self.upgrade_fairlead,
        )


def run_lifecycle_changes(moves: LifecycleChanges, *, rate: float, tokens: int, still: float) -> dict[str, Any]:
    """Makes all changes under ``rate`` streams a second; returns figures and failed streams.

    still: seconds without a change at first, which measure the cost of the streams alone. A
    tenth of that passes between two changes, so that a failure belongs to one of them.
    """
    kubectl = moves.release.cluster
    with StreamSession(moves.client, moves.model.name, rate=rate, tokens=tokens) as streams:
        with streams.step("nothing moves"):
            time.sleep(still / 2)
            before = cpu_seconds(kubectl)
            time.sleep(still)
            cores = cores_used(before, cpu_seconds(kubectl))
        for move in moves.all():
            with streams.step(move.__name__.replace("_", " ")):
                move()
            with streams.step(f"after: {streams.steps[-1]['step']}"):
                time.sleep(still / 10)
    return {
        "rate": rate,
        "tokens": tokens,
        "open_at_once": max(second["open"] for second in streams.seconds),
        **streams.end,
        "cores_when_nothing_moves": cores,
        "steps": [step for step in streams.steps if not step["step"].startswith("after:")],
        "failures": streams.attributed_failures(),
    }

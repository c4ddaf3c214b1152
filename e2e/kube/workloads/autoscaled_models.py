"""Models whose numbers follow their load, and what tests ask about them."""

import time
from collections.abc import Callable

from e2e.kube.cluster_access.kubectl import Kubectl, eventually
from e2e.kube.workloads.manifests import SMALL_ENGINE, Manifest, model
from e2e.kube.workloads.model_deployments import DeployedModel
from fairlead.kube.field_managers import replicas_managers

ONE, TOKENS = 1.0, 40
"""Streams a second that one engine carries within its objectives, of so many tokens each: half of
what it has places for. So ``5 * ONE`` need three engines at least, and ``3 * ONE`` two."""
RESULTS = "e2e-autoscaling"
OBJECTIVES = {"ttft": "2s", "tpot": "250ms", "target": "95%"}
"""The TPOT target is far above a step's 45 ms, so an engine's four slots bound its capacity, not
the machine's other work. At 80 ms, a busy machine led to hundreds of engines."""


def autoscaled_model(name: str, *, least: int, most: int = 8, **policy: object) -> Manifest:
    """A model of one pool of ``NARROW`` engines, which the autoscaler sizes."""
    return model(
        name,
        pools=[{"acceleratorClassName": SMALL_ENGINE, "minReplicas": least, "maxReplicas": most}],
        slo=OBJECTIVES,
        autoscaling={"mode": "Auto", **policy},
        rollout={"drainTimeout": "30s"},
    )


def desired(here: Kubectl, name: str, pool: str = "main") -> int:
    return int(here.get("deployment", f"{name}-{pool}")["spec"].get("replicas", 0))


def writers(here: Kubectl, workload: str) -> set[str]:
    return set(replicas_managers(here.get(workload, "--show-managed-fields")))


def ready_replicas(found: DeployedModel) -> int:
    return int(found.get().get("status", {}).get("pools", [{}])[0].get("ready", 0))


def condition_reason(found: DeployedModel) -> str:
    return str(found.condition("Autoscaling").get("reason", ""))


def until(what: str, found: DeployedModel, so: Callable[[], bool], seconds: float) -> float:
    """Waits until a condition holds and returns the seconds that it took."""
    begun = time.monotonic()
    eventually(what, so, seconds=seconds, describe=lambda: str(found.get().get("status")))
    return round(time.monotonic() - begun, 1)


def wait_until_owned(here: Kubectl, deployment: str, replicas: int) -> None:
    """Write the number in the autoscaler's name, as the reference of conditions says it."""
    patch = f'{{"spec":{{"replicas":{replicas}}}}}'
    words = ("--subresource=scale", "--type=merge", "--field-manager=fairlead-autoscaler", "-p", patch)
    here.run("patch", "deployment", deployment, *words)

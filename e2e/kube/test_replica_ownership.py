"""Owners of the number of a pool's instances: no two write it, and the autoscaler takes over again
where it may.

The HorizontalPodAutoscaler is that of the kube-controller-manager, which is KEDA's as well. It
raises to its least and lowers to its most by itself, without metrics.
"""

from typing import Any

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl, ReplicaWatch
from e2e.kube.workloads import client_pods
from e2e.kube.workloads.autoscaled_models import (
    OBJECTIVES,
    ONE,
    RESULTS,
    TOKENS,
    autoscaled_model,
    condition_reason,
    desired,
    until,
    wait_until_owned,
    writers,
)
from e2e.kube.workloads.client_pods import ClientPod, StreamSession
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.kube.workloads.manifests import model, paced_engine, small_engine
from e2e.kube.workloads.model_deployments import DeployedModel
from fairlead_testing.reports import ReportLine

pytestmark = pytest.mark.lane("engines", position=60)

HPA = "kube-controller-manager"
OURS = "fairlead-autoscaler"
SLOW = "e2e-split"
TOGETHER = 6


DEPLOYMENT = ("apps/v1", "Deployment")
MODEL = ("serving.fairlead.io/v1alpha1", "ModelDeployment")


def hpa(here: Kubectl, name: str, least: int, most: int, kind: tuple[str, str] = DEPLOYMENT) -> None:
    """Apply one that holds an object of a kind between these."""
    target = {"apiVersion": kind[0], "kind": kind[1], "name": name}
    scaler = {"scaleTargetRef": target, "minReplicas": least, "maxReplicas": most}
    meta = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name}}
    here.apply({**meta, "spec": scaler})


def said(found: DeployedModel) -> str:
    return str(found.condition("Autoscaling").get("message", ""))


def decisions(release: HelmRelease) -> int:
    return sum(_ticks(release, pod["metadata"]["name"]) for pod in release.pods("autoscaler").values())


def _ticks(release: HelmRelease, pod: str) -> int:
    asked = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/metrics', timeout=10).read().decode())"
    page = release.here.python(pod, asked).splitlines()
    return round(float(next(line.split()[1] for line in page if line.startswith("fairlead_autoscaler_ticks_total"))))


def stays(release: HelmRelease, numbers: ReplicaWatch, found: DeployedModel, looks: int = 12) -> None:
    """Asserts that no number changes during so many ticks of the autoscalers."""
    before, begun = list(numbers.changes), decisions(release)
    until("they have looked often", found, lambda: decisions(release) >= begun + looks, 120)
    assert numbers.changes == before


@pytest.mark.lane("installation", position=30)
@pytest.mark.load
def test_who_sets_the_number_of_a_pools_instances_is_left_alone(here: Kubectl, installed: HelmRelease) -> None:
    here.apply(paced_engine())
    here.apply(model("scaled"))
    found = DeployedModel(here, "scaled")
    found.wait_until_settled(pods=1)
    here.run("scale", "deployment/scaled-main", "--replicas=2")
    found.wait_until_settled(pods=2)
    found.patch({"slo": {"ttft": "2s"}, "rollout": {"drainTimeout": "30s"}})
    found.wait_until_settled(pods=2)
    hpa(here, "scaled-main", 3, 4)
    found.wait_until_settled(pods=3)
    found.patch({"slo": {"ttft": "3s"}, "engine": {"env": [{"name": "ROUND", "value": "2"}]}})
    found.wait_until_settled(pods=3)
    assert "fairlead" not in writers(here, "deployment/scaled-main")
    assert found.get()["spec"]["pools"][0]["minReplicas"] == 1


@pytest.mark.load
@pytest.mark.skipif(not client_pods.FULL, reason="`make e2e LOAD=1` runs it")
def test_an_hpa_begins_on_a_model_whose_manifest_names_no_number(here: Kubectl, installed: HelmRelease) -> None:
    """The page says to leave `spec.replicas` out. Its placeholder is what the HPA reads."""
    here.apply(paced_engine())
    here.apply(model("begun"))
    found = DeployedModel(here, "begun")
    found.wait_until_settled(pods=1)
    hpa(here, "begun", 2, 3, MODEL)
    found.wait_until_settled(pods=2)
    assert found.get()["spec"]["replicas"] == 2
    assert "fairlead-placeholder" not in writers(here, "modeldeployment/begun")
    found.patch({"pools": [{**found.get()["spec"]["pools"][0], "minReplicas": 1}], "slo": {"ttft": "2s"}})
    hpa(here, "begun", 3, 3, MODEL)
    found.wait_until_settled(pods=3)
    here.run("delete", "hpa", "begun")


@pytest.mark.load
@pytest.mark.skipif(not client_pods.FULL, reason="`make e2e LOAD=1` runs it")
@pytest.mark.timeout(1_200, func_only=True)
def test_an_hpa_takes_the_number_under_load_and_gives_it_back(here: Kubectl, installed: HelmRelease) -> None:
    here.apply(small_engine())
    here.apply(autoscaled_model("held", least=1))
    client, found, name = ClientPod(here, installed).start(), DeployedModel(here, "held"), "held-main"
    client.first_token("held")
    with ReplicaWatch(here, "held") as numbers, StreamSession(client, "held", rate=3 * ONE, tokens=TOKENS) as streams:
        until("it has grown by itself", found, lambda: desired(here, "held") >= 2, 180)
        assert HPA not in writers(here, f"deployment/{name}")
        hpa(here, name, 2, 2)
        until("it yields", found, lambda: condition_reason(found) == "SetElsewhere" and desired(here, "held") == 2, 90)
        until("it says what it would be", found, lambda: f"pool main 2, set by {HPA}; it would be " in said(found), 60)
        stays(installed, numbers, found)
        hpa(here, name, 4, 4)
        until("the other raises it", found, lambda: desired(here, "held") == 4, 60)
        stays(installed, numbers, found)
        here.run("delete", "hpa", name)
        stays(installed, numbers, found)  # who wrote last keeps it, gone or not
        assert condition_reason(found) == "SetElsewhere"
        wait_until_owned(here, name, 1)
        took = until(
            "it decides again", found, lambda: condition_reason(found) == "Deciding" and desired(here, "held") >= 2, 90
        )
        assert writers(here, f"deployment/{name}") == {OURS}
    lost = len(streams.failures)
    bars = [ReportLine("0 failed streams while an HPA takes the number and gives it back", lost, lost == 0)]
    client_pods.record_result(
        "beside_an_hpa", bars, into=RESULTS, numbers=numbers.changes, seconds_to_take_over=took, **streams.end
    )
    assert streams.failures == []


@pytest.mark.load
@pytest.mark.skipif(not client_pods.FULL, reason="`make e2e LOAD=1` runs it")
@pytest.mark.timeout(1_200, func_only=True)
def test_switched_to_advise_and_off_in_the_midst_of_a_ramp(here: Kubectl, installed: HelmRelease) -> None:
    here.apply(small_engine())
    here.apply(autoscaled_model("switched", least=1, stepUp=1))  # a step a minute: the ramp takes minutes
    client, found, name = ClientPod(here, installed).start(), DeployedModel(here, "switched"), "switched-main"
    client.first_token("switched")
    with (
        ReplicaWatch(here, "switched") as numbers,
        StreamSession(client, "switched", rate=3 * ONE, tokens=TOKENS) as streams,
    ):
        until("the ramp has begun", found, lambda: desired(here, "switched") == 2, 180)
        found.patch({"autoscaling": {"mode": "Advise"}})
        until("it only advises", found, lambda: condition_reason(found) == "Advising", 60)
        until("it says more", found, lambda: "pool main 2, would be " in said(found), 90)
        stays(installed, numbers, found)
        found.patch({"autoscaling": {"mode": "Disabled"}})
        until("it says nothing", found, lambda: condition_reason(found) == "", 60)
        stays(installed, numbers, found)
        hpa(here, name, 3, 3)
        until("the number is anybody's", found, lambda: desired(here, "switched") == 3, 60)
        found.patch({"autoscaling": {"mode": "Auto"}})
        until("it leaves the other alone", found, lambda: condition_reason(found) == "SetElsewhere", 60)
        stays(installed, numbers, found)
        here.run("delete", "hpa", name)
        wait_until_owned(here, name, 1)
        took = until("the ramp goes on", found, lambda: desired(here, "switched") == 2, 180)
        assert writers(here, f"deployment/{name}") == {OURS}
    lost = len(streams.failures)
    bars = [
        ReportLine(
            "0 failed streams while the mode is Advise, Off and Auto again in the midst of a ramp", lost, lost == 0
        )
    ]
    client_pods.record_result(
        "switched", bars, into=RESULTS, numbers=numbers.changes, seconds_to_go_on=took, **streams.end
    )
    assert streams.failures == []


def split(name: str) -> list[dict[str, object]]:
    """An accelerator that reads 2,000 tokens a second, and a model of two roles on it that share
    ``TOGETHER`` engines."""
    narrow_profile = small_engine()["spec"]["profile"]
    slow = {
        **small_engine(),
        "metadata": {"name": SLOW},
        "spec": {"profile": {**narrow_profile, "prefillTokenSeconds": "500u"}},
    }
    pools = [
        {"name": role.lower(), "role": role, "acceleratorClassName": SLOW, "minReplicas": 1, "maxReplicas": 5}
        for role in ("Prefill", "Decode")
    ]
    policy = {"mode": "Auto", "maxReplicas": TOGETHER, "stabilizationWindow": "60s"}
    spec: dict[str, Any] = {"pools": pools, "slo": {**OBJECTIVES, "ttft": "8s"}, "autoscaling": policy}
    return [slow, model(name, **spec, kvCache={"transfer": "NIXL"}, rollout={"drainTimeout": "30s"})]


@pytest.mark.load
@pytest.mark.skipif(not client_pods.FULL, reason="`make e2e LOAD=1` runs it")
@pytest.mark.timeout(1_800, func_only=True)
def test_prefill_and_decode_share_a_number_of_engines_and_change_sides(here: Kubectl, installed: HelmRelease) -> None:
    here.apply(*split("sides"))
    client, found = ClientPod(here, installed).start(), DeployedModel(here, "sides")
    client.first_token("sides")
    until("it is decided on", found, lambda: condition_reason(found) == "Deciding", 60)

    def sides() -> tuple[int, int]:
        return desired(here, "sides", "prefill"), desired(here, "sides", "decode")

    figures: dict[str, object] = {}
    long = {"repeats": 500, "conversations": 1_000_000}  # some 3,500 tokens, none of which is cached
    with ReplicaWatch(here, "sides") as numbers:
        with StreamSession(client, "sides", rate=8 * ONE, tokens=TOKENS) as answers:
            took = until("decode has what prefill leaves", found, lambda: sides() == (1, TOGETHER - 1), 300)
        figures["answers"] = {"seconds_until_right": took, "sides": sides(), **answers.end}
        with StreamSession(client, "sides", rate=2.0, tokens=4, prompt=long) as prompts:
            took = until("engines change sides", found, lambda: sides()[0] >= TOGETHER // 2 + 1, 300)
            figures["sides_then"] = sides()
        figures["prompts"] = {"seconds_until_right": took, **prompts.end}
    failures = answers.failures + prompts.failures
    bars = [
        ReportLine("0 failed streams while prefill and decode change sides", len(failures), not failures),
        ReportLine(
            f"never more than {TOGETHER} engines are asked for",
            numbers.most_together,
            numbers.most_together <= TOGETHER,
        ),
    ]
    client_pods.record_result("prefill_and_decode", bars, into=RESULTS, numbers=numbers.changes, **figures)
    assert failures == []
    assert numbers.most_together <= TOGETHER

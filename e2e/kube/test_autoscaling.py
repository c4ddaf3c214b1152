"""Numbers that follow the load on a real cluster: up, down, from nothing, and while what sets them
is away."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.cluster.artifacts import pinned_versions
from e2e.cluster.run_record import RunRecord
from e2e.kube.cluster_access.kubectl import Kubectl, eventually
from e2e.kube.workloads import client_pods
from e2e.kube.workloads.autoscaled_models import (
    ONE,
    RESULTS,
    TOKENS,
    autoscaled_model,
    condition_reason,
    desired,
    ready_replicas,
    until,
    wait_until_owned,
    writers,
)
from e2e.kube.workloads.client_pods import ClientPod, StreamSession, run_streams
from e2e.kube.workloads.helm_release import NAMESPACE, HelmRelease
from e2e.kube.workloads.manifests import model, small_engine
from e2e.kube.workloads.model_deployments import DeployedModel
from fairlead_testing.reports import ReportLine

pytestmark = pytest.mark.lane("engines", position=40)

AUTOSCALER = "deployment/fairlead-autoscaler"


def test_the_first_request_starts_an_engine_and_a_crowd_starts_more(here: Kubectl, installed: HelmRelease) -> None:
    here.apply(small_engine())
    here.apply(autoscaled_model("crowd", least=0))
    client, found = ClientPod(here, installed).start(), DeployedModel(here, "crowd")
    until("it is decided on", found, lambda: condition_reason(found) == "Deciding", 60)
    assert desired(here, "crowd") == 0
    first = client.send("crowd")
    assert first.status == 200, first
    assert desired(here, "crowd") >= 1
    with StreamSession(client, "crowd", rate=5 * ONE, tokens=TOKENS) as streams:
        until("there are more", found, lambda: ready_replicas(found) >= 3, 120)
    assert streams.failures == []
    assert found.condition("Ready")["status"] in ("True", "False")
    events = {one["reason"] for one in here.get("events.events.k8s.io")["items"]}
    assert "ScaledUp" in events
    assert writers(here, "deployment/crowd-main") == {"fairlead-autoscaler"}


def test_somebody_else_takes_the_number_and_gives_it_back(here: Kubectl, installed: HelmRelease) -> None:
    here.apply(small_engine())
    here.apply(autoscaled_model("taken", least=1))
    found = DeployedModel(here, "taken")
    until("it is decided on", found, lambda: condition_reason(found) == "Deciding" and ready_replicas(found) == 1, 120)
    here.run("scale", "deployment/taken-main", "--replicas=2")
    until("it yields", found, lambda: condition_reason(found) == "SetElsewhere" and ready_replicas(found) == 2, 60)
    wait_until_owned(here, "taken-main", 1)
    until("it decides again", found, lambda: condition_reason(found) == "Deciding", 60)
    found.patch({"autoscaling": {"mode": "Disabled"}})
    until("it lets go", found, lambda: condition_reason(found) == "", 60)
    assert desired(here, "taken") == 1


@pytest.mark.load
@pytest.mark.skipif(not client_pods.FULL, reason="`make e2e LOAD=1` runs it")
def test_an_engine_sleeps_while_nobody_asks_and_wakes_with_the_next_request(
    here: Kubectl, installed: HelmRelease
) -> None:
    here.apply(small_engine())
    here.apply(autoscaled_model("drowsy", least=0, most=2, sleep={"max": 1, "after": "1h"}))
    client, found = ClientPod(here, installed).start(), DeployedModel(here, "drowsy")
    until("it is decided on", found, lambda: condition_reason(found) == "Deciding", 60)
    assert client.send("drowsy").status == 200
    (uid,) = _marks(here, "drowsy")
    until("its engine sleeps", found, lambda: _marks(here, "drowsy") == {uid: "1-asleep"}, 300)
    until("it says so itself", found, lambda: _says_asleep(here, "drowsy"), 60)
    assert client.send("drowsy").status == 200
    assert _marks(here, "drowsy") == {uid: None}, "nobody was started"
    until("it sleeps again", found, lambda: _marks(here, "drowsy") == {uid: "1-asleep"}, 300)
    until("it says so again", found, lambda: _says_asleep(here, "drowsy"), 60)
    found.patch({"autoscaling": {"mode": "Advise"}})
    until("it is woken, since nobody decides any more", found, lambda: _marks(here, "drowsy") == {uid: None}, 60)
    assert client.send("drowsy").status == 200


def _marks(here: Kubectl, name: str) -> dict[str, str | None]:
    pods = here.get("pods", "-l", f"fairlead.io/model={name}")["items"]
    return {pod["metadata"]["uid"]: pod["metadata"]["annotations"].get("fairlead.io/sleep") for pod in pods}


def _says_asleep(here: Kubectl, name: str) -> bool:
    """Returns whether the engine says, asked from inside its pod, that it sleeps."""
    program = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/is_sleeping').read().decode())"
    answer = here.run("exec", f"deployment/{name}-main", "--", "python3", "-c", program)
    return bool(json.loads(answer)["is_sleeping"])


@pytest.mark.load
@pytest.mark.skipif(not client_pods.FULL, reason="`make e2e LOAD=1` runs it")
def test_a_group_of_nodes_is_started_by_the_first_request(here: Kubectl, installed: HelmRelease) -> None:
    pool = {
        "acceleratorClassName": "nvidia-a100",
        "minReplicas": 0,
        "maxReplicas": 2,
        "parallelism": {"tensor": 2, "nodes": 2},
    }
    here.apply(model("group", pools=[pool], autoscaling={"mode": "Auto"}, rollout={"drainTimeout": "30s"}))
    client, found = ClientPod(here, installed).start(), DeployedModel(here, "group")
    until("it is decided on", found, lambda: condition_reason(found) == "Deciding", 60)
    assert client.send("group").status == 200
    assert here.get("leaderworkerset", "group-main")["spec"]["replicas"] == 1
    assert writers(here, "leaderworkerset/group-main") == {"fairlead-autoscaler"}


@pytest.mark.load
@pytest.mark.skipif(not client_pods.FULL, reason="`make e2e LOAD=1` runs it")
@pytest.mark.timeout(1_800, func_only=True)
def test_the_number_follows_one_five_and_one_times_what_an_engine_carries(
    here: Kubectl, installation: HelmRelease
) -> None:
    here.apply(small_engine())
    here.apply(autoscaled_model("wave", least=1, stabilizationWindow="60s"))
    client, found = ClientPod(here, installation).start(), DeployedModel(here, "wave")
    client.first_token("wave")
    figures: dict[str, object] = {}
    failures: list[dict[str, object]] = []

    def phase(name: str, rate: float, so: Callable[[int], bool], seconds: float) -> int:
        with StreamSession(client, "wave", rate=rate, tokens=TOKENS) as streams:
            time.sleep(30.0)
            took = until(f"{name}: its number is right", found, lambda: so(ready_replicas(found)), seconds)
        failures.extend(streams.failures)
        figures[name] = {"seconds_until_right": took, "ready": ready_replicas(found), **streams.end}
        return ready_replicas(found)

    usual = phase("one", ONE, lambda count: count >= 1, 60.0)
    crowd = phase("five", 5 * ONE, lambda count: count > usual, 300.0)
    phase("one_again", ONE, lambda count: count <= usual < crowd, 900.0)
    bars = [ReportLine("0 failed streams while the load goes 1 x, 5 x, 1 x", len(failures), not failures)]
    client_pods.record_result("one_five_one", bars, into=RESULTS, **figures)
    assert failures == []


@pytest.mark.load
@pytest.mark.skipif(not client_pods.FULL, reason="`make e2e LOAD=1` runs it")
@pytest.mark.timeout(1_800, func_only=True)
@pytest.mark.parametrize("what", ["autoscaler", "signals"])
def test_nothing_is_lost_when_it_is_killed_or_blind_in_the_midst_of_a_ramp(
    here: Kubectl, installation: HelmRelease, what: str
) -> None:
    here.apply(small_engine())
    here.apply(autoscaled_model("ramp", least=2))
    client, found = ClientPod(here, installation).start(), DeployedModel(here, "ramp")
    model_name = f"{here.namespace}/ramp"  # the namespace of another case may still be ending
    client.first_token(model_name)
    until("it is decided on", found, lambda: condition_reason(found) == "Deciding", 60)
    killed = ("delete", "pods", "-l", "app.kubernetes.io/component=autoscaler", "--force", "--grace-period=0")
    with StreamSession(client, model_name, rate=5 * ONE, tokens=TOKENS) as streams:
        before = desired(here, "ramp")
        if what == "autoscaler":
            installation.here.run(*killed)  # both of them, before they have seen what comes
        else:
            _set_gateway(installation, "http://10.255.255.1:8081")
            until("it says that the load is unknown", found, lambda: condition_reason(found) == "LoadUnknown", 120)
            assert desired(here, "ramp") >= before
            _set_gateway(installation, f"http://fairlead-gateway-manage.{NAMESPACE}.svc:8081")
        took = until("it has as many as it needs", found, lambda: ready_replicas(found) >= 3, 300)
    bars = [ReportLine(f"0 failed streams when it loses its {what}", len(streams.failures), streams.failures == [])]
    client_pods.record_result(f"without_{what}", bars, into=RESULTS, before=before, seconds_to_grow=took, **streams.end)
    assert streams.failures == []


@pytest.mark.load
@pytest.mark.skipif(not client_pods.FULL, reason="`make e2e LOAD=1` runs it")
@pytest.mark.skipif("KUBECONFIG" in os.environ, reason="somebody else's API server is not killed")
@pytest.mark.timeout(1_800, func_only=True)
def test_nothing_is_lost_when_the_api_server_is_killed_in_the_midst_of_a_ramp(
    here: Kubectl, installation: HelmRelease
) -> None:
    here.apply(small_engine())
    here.apply(autoscaled_model("away", least=2))
    client, found = ClientPod(here, installation).start(), DeployedModel(here, "away")
    client.first_token("away")
    until("it is decided on", found, lambda: condition_reason(found) == "Deciding", 60)
    end = run_streams(client, "away", rate=5 * ONE, tokens=TOKENS, seconds=120.0)
    _without_an_api_server(seconds=30.0)
    took = until("it has as many as it needs", found, lambda: ready_replicas(found) >= 3, 300)
    figures = end()
    failed = sum(count for outcome, count in figures["outcomes"].items() if outcome != "complete")
    bars = [ReportLine("0 failed streams when the API server is killed", failed, failed == 0)]
    client_pods.record_result("without_the_api_server", bars, into=RESULTS, seconds_to_grow=took, **figures)
    assert failed == 0, figures["outcomes"]


def _without_an_api_server(seconds: float) -> None:
    """Kill the cluster's, and bring it back after so long."""
    record = RunRecord(pinned_versions.cache_folder() / "cluster")
    pid = record.pids()["apiserver"]
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    os.kill(pid, signal.SIGKILL)
    time.sleep(seconds)
    record.start("apiserver", command)
    eventually("the API server is ready again", lambda: _answers(record), seconds=60)


def _answers(record: RunRecord) -> bool:
    asked = ["kubectl", f"--kubeconfig={record.run / 'admin.kubeconfig'}", "get", "--raw=/readyz"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def _set_gateway(installation: HelmRelease, gateway: str) -> None:
    """Let the autoscaler ask these gateways."""
    path = "/spec/template/spec/containers/0/args/1"
    patch = json.dumps([{"op": "replace", "path": path, "value": f"--gateway={gateway}"}])
    installation.here.run("patch", AUTOSCALER, "--type=json", "-p", patch)
    installation.here.wait_for_rollout(AUTOSCALER)

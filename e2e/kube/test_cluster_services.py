"""Services of the cluster other than Kubernetes itself: DNS, service accounts, groups of pods."""

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl, eventually
from e2e.kube.workloads.manifests import PORT, Manifest, deployment, pod_spec

pytestmark = pytest.mark.lane("engines", position=10)

WHO = """
import ssl, urllib.error, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
trusted = ssl.create_default_context(cafile=folder + "ca.crt")
token = {"Authorization": "Bearer " + open(folder + "token").read()}
for path in ("/api", "/api/v1/secrets"):
    asked = urllib.request.Request("https://kubernetes.default.svc" + path, headers=token)
    try:
        print(urllib.request.urlopen(asked, context=trusted, timeout=10).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""
LEADER = f"""
import os, urllib.request
print(urllib.request.urlopen("http://%s:{PORT}/health" % os.environ["LWS_LEADER_ADDRESS"], timeout=10).status)
print(os.environ["LWS_GROUP_SIZE"], os.environ["LWS_WORKER_INDEX"])
"""


def engine() -> Manifest:
    return pod_spec("sim", "engine", "--listen", f"0.0.0.0:{PORT}", "--model", "tiny", ready="/health")


def test_a_pod_reaches_the_api_server_by_name_and_may_do_no_more_than_its_account(here: Kubectl) -> None:
    spec = engine()
    spec["automountServiceAccountToken"] = True
    here.apply(deployment("engine", spec))
    here.wait_for_rollout("deployment/engine")
    assert here.python("deployment/engine", WHO).split() == ["200", "403"]


def test_a_leader_worker_set_is_a_group_that_comes_and_goes_as_one(here: Kubectl) -> None:
    group = {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "group"},
        "spec": {
            "replicas": 1,
            "leaderWorkerTemplate": {
                "size": 2,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "workerTemplate": {"spec": engine()},
            },
        },
    }
    here.apply(group)
    here.wait("condition=Available", "leaderworkerset/group")
    here.wait("condition=Ready", "pod/group-0-1")  # a group may be available before its last worker
    assert here.python("group-0-1", LEADER).split() == ["200", "2", "1"]
    before = here.get("pod", "group-0")["metadata"]["uid"]
    here.run("delete", "pod", "group-0-1", "--wait=false")

    def again() -> bool:
        pods = {pod["metadata"]["name"]: pod for pod in here.get("pods")["items"]}
        leader = pods.get("group-0")
        if leader is None or leader["metadata"]["uid"] == before or "group-0-1" not in pods:
            return False
        return all(_ready(pod) for pod in pods.values())

    eventually("the whole group is new and ready", again)


def _ready(pod: Manifest) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

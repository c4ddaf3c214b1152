"""A change of a model on real nodes: held, let through, taken back, by ``fairlead rollout`` and by
kubectl, never with fewer engines.

The same for instances of one pod and of several: a Deployment's controller replaces the former,
LeaderWorkerSet's the latter.

Canaries under traffic: a slow build and one with long answers are rolled back with the reason. A
healthy one is promoted.
"""

import json
import subprocess
from types import TracebackType
from typing import Self

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl, KubectlWatch, Manifest, eventually, run_fairlead
from e2e.kube.workloads.client_pods import FULL, HOST, ClientPod
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.kube.workloads.manifests import model
from e2e.kube.workloads.model_deployments import DeployedModel

pytestmark = pytest.mark.lane("engines", position=50)

UNDO = "fairlead.io/run-revision"
_LOAD = pytest.mark.load
GROUPS = [pytest.param("group", 2, 2, marks=_LOAD), pytest.param("alone", 1, 2, marks=_LOAD)] if FULL else []
"""Three rollouts of groups of nodes take minutes of waiting, so they belong to ``make e2e LOAD=1``.
"""

_RATE = 8.0
_TALK = """
import json, random, sys, threading, time, urllib.request
url, key, model, rate = sys.argv[1:]
fields = {"authorization": f"Bearer {key}", "content-type": "application/json"}
counts, lock = {"answers": 0, "failed": []}, threading.Lock()
over = threading.Event()
def ask():
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": f"{random.random()} Why?"}]}
    try:
        request = urllib.request.Request(url, json.dumps(body).encode(), fields)
        with urllib.request.urlopen(request, timeout=120) as answer:
            whole = b"[DONE]" in answer.read()[-40:]
        said = "" if whole else "the stream ended early"
    except OSError as error:
        said = repr(error)
    with lock:
        counts["answers"] += not said
        counts["failed"] += [said] if said else []
def arrive():
    while not over.wait(random.expovariate(float(rate))):
        thread = threading.Thread(target=ask)
        thread.start()
        threads.append(thread)
threads = []
arriving = threading.Thread(target=arrive)
arriving.start()
sys.stdin.read()
over.set()
arriving.join()
for thread in threads:
    thread.join()
print(json.dumps({"answers": counts["answers"], "failed": counts["failed"][:5]}))
"""


def grouped_model(name: str, *, replicas: int, nodes: int) -> Manifest:
    """Returns a model whose instances have a node each, or several."""
    pool = {
        "name": "main",
        "acceleratorClassName": "nvidia-a100",
        "minReplicas": replicas,
        "parallelism": {"tensor": nodes, "nodes": nodes},
    }
    return model(name, pools=[pool], rollout={"drainTimeout": "30s"})


class ReadyMinimum(KubectlWatch):
    """The numbers of ready instances during the block, at each change: as the workload reports them
    (``told``) and as the pods show (``seen``). Draining pods do not count among the latter."""

    def __init__(self, here: Kubectl, workload: str, model: str) -> None:
        self.told: list[int] = []
        self.seen: list[int] = []
        self._ready: dict[str, bool] = {}
        shown = "jsonpath={.status.readyReplicas}{'\\n'}"
        pod = "{.object.metadata.uid} {.type} {.object.metadata.deletionTimestamp} {.object.status.conditions}{'\\n'}"
        labels = ("-l", f"fairlead.io/model={model},fairlead.io/endpoint=true")
        super().__init__(
            here,
            (self._add_available, (workload, "-o", shown)),
            (self._add_ready, ("pods", *labels, "--output-watch-events", "-o", f"jsonpath={pod}")),
        )

    def _add_available(self, line: str) -> None:
        self.told.append(int(line.strip() or 0))

    def _add_ready(self, line: str) -> None:
        uid, kind, going, *rest = line.split(" ", 3)
        conditions = json.loads("".join(rest) or "[]")
        ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
        listed = kind == "ADDED" and ready and not going  # one of the first list: a pod that is made is not ready yet
        self._ready[uid] = ready and not going and kind != "DELETED"
        if not listed:
            self.seen.append(sum(self._ready.values()))


def rollout(here: Kubectl, *words: str) -> tuple[int, str]:
    return run_fairlead(here, "rollout", *words, "--namespace", here.namespace, codes=(0, 1))


def rounds(found: DeployedModel) -> set[str]:
    """Returns the changes that the engines have: the variable ``ROUND`` of each."""
    containers = [pod["spec"]["containers"][0] for pod in found.pods().values()]
    return {
        next((one["value"] for one in each.get("env", ()) if one["name"] == "ROUND"), "first") for each in containers
    }


@pytest.mark.timeout(900, func_only=True)
@pytest.mark.parametrize(("name", "replicas", "nodes"), [("single", 2, 1), *GROUPS])
def test_a_change_is_held_let_through_and_taken_back(
    here: Kubectl, installed: HelmRelease, name: str, replicas: int, nodes: int
) -> None:
    here.apply(grouped_model(name, replicas=replicas, nodes=nodes))
    client, found = ClientPod(here, installed).start(), DeployedModel(here, name)
    client.first_token(f"{here.namespace}/{name}")
    first = found.wait_until_settled(pods=replicas * nodes)
    workload = "leaderworkersets" if nodes > 1 else "deployments"
    (one,) = here.get(workload, "-l", f"fairlead.io/model={name}")["items"]
    with ReadyMinimum(here, f"{workload}/{one['metadata']['name']}", name) as fewest:
        assert rollout(here, "pause", name)[0] == 0
        found.patch({"engine": {"env": [{"name": "ROUND", "value": "second"}]}})
        eventually("it says that it waits", lambda: found.condition("Reconciling").get("reason") == "Paused")
        code, said = rollout(here, "status", name)
        assert code == 1
        assert "runs revision 1 of 2: the rollout is paused; revision 1 runs on" in said
        assert found.pods().keys() == first.keys()

        assert rollout(here, "resume", name, "--wait", "200s")[0] == 0
        assert rounds(found) == {"second"}
        assert not found.wait_until_settled(pods=replicas * nodes).keys() & first.keys()

        before = found.get()
        assert rollout(here, "undo", name, "--wait", "200s")[0] == 0
        assert rounds(found) == {"first"}
        after = found.get()
        assert after["metadata"]["annotations"][UNDO] == "1/2"
        assert (after["spec"], after["metadata"]["generation"]) == (before["spec"], before["metadata"]["generation"])

        here.run("annotate", f"modeldeployment/{name}", f"{UNDO}-")  # as one who has kubectl only
        eventually("the spec runs again", lambda: rounds(found) == {"second"}, seconds=200)
        found.wait_until_settled(pods=replicas * nodes, seconds=200)
    assert min(fewest.told) >= replicas, fewest.told
    assert min(fewest.seen) >= replicas, fewest.seen

    answered = client.begin(f"{here.namespace}/{name}", tokens=400)
    here.run("delete", f"modeldeployment/{name}", "--wait=false")
    got = answered()
    assert (got.status, got.text.rstrip()[-12:]) == (200, "data: [DONE]")
    labels = ("-l", f"fairlead.io/model={name}")
    eventually("its pods are gone", lambda: not here.get("pods", *labels)["items"], seconds=120)


class Traffic:
    """Conversations of one turn, whose answers end by themselves, while the block lasts."""

    def __init__(self, client: ClientPod, model: str) -> None:
        self._client = client
        self._words = [f"http://{HOST}/v1/chat/completions", client.key, model, f"{_RATE:g}"]
        self.answers = 0
        self.failed: list[str] = []

    def __enter__(self) -> Self:
        here = self._client.here
        words = ["exec", "-i", self._client.name, "--", "python3", "-c", _TALK, *self._words]
        self._process = subprocess.Popen(
            ["kubectl", "-n", here.namespace, *words],
            env=dict(here.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        said, _ = self._process.communicate()
        if said:
            counts = json.loads(said)
            self.answers, self.failed = counts["answers"], counts["failed"]


def canary_model(name: str) -> Manifest:
    """Returns a model of two instances whose changes are observed on half of them."""
    pool = {"name": "main", "acceleratorClassName": "nvidia-a100", "minReplicas": 2}
    rollout = {"drainTimeout": "30s", "canary": {"steps": [50], "observe": "3m"}}
    return model(name, pools=[pool], rollout=rollout)


def canary(found: DeployedModel) -> Manifest:
    return dict(found.get().get("status", {}).get("canary") or {})


def arguments(found: DeployedModel) -> set[str]:
    """Returns the arguments of the model's engines that a change added."""
    known = ("--speed", "--answer-length", "--seed")
    return {
        word for pod in found.pods().values() for word in pod["spec"]["containers"][0]["args"] if word.startswith(known)
    }


@pytest.mark.extended
@pytest.mark.timeout(1500, func_only=True)
@pytest.mark.parametrize(
    ("name", "args", "phase", "reason"),
    [
        ("slow", ("--speed=0.77",), "RolledBack", "TPOTMissed"),
        ("long", ("--answer-length=2", "--fault=error,share=0.02"), "RolledBack", ""),
        ("healthy", ("--seed=5",), "Promoted", "Promoted"),
    ],
)
def test_a_change_is_judged_under_traffic(
    here: Kubectl, installed: HelmRelease, name: str, args: tuple[str, ...], phase: str, reason: str
) -> None:
    here.apply(canary_model(name))
    client, found = ClientPod(here, installed).start(), DeployedModel(here, name)
    client.first_token(f"{here.namespace}/{name}")
    found.wait_until_settled(pods=2)
    with Traffic(client, f"{here.namespace}/{name}") as traffic:
        found.patch({"engine": {"args": list(args)}})
        eventually("the canary is observed", lambda: canary(found).get("phase") == "Observing", seconds=120)
        assert len(found.pods()) == 3
        eventually(f"the canary is {phase}", lambda: canary(found).get("phase") == phase, seconds=900)
        condition = found.condition("CanaryHealthy")
        if phase == "Promoted":
            eventually("all engines have the change", lambda: len(found.pods()) == 2, seconds=200)
            assert arguments(found) == set(args)
        else:
            eventually("the canary is gone", lambda: len(found.pods()) == 2, seconds=200)
            assert arguments(found) == set()
    assert traffic.answers > 100
    if name != "long":
        assert traffic.failed == []
    told = condition["reason"]
    assert told == reason or (not reason and told in ("AnswerLengthMissed", "ErrorsMissed")), condition
    events = here.get("events", "--field-selector", f"involvedObject.name={name}")["items"]
    notes = {event["reason"]: event.get("message") or event.get("note") for event in events}
    assert notes[f"Canary{phase}"].lower() == condition["message"].lower()

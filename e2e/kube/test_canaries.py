"""Canaries on real nodes, under traffic.

A slow build and one with long answers are rolled back with the reason. A healthy one is promoted.
"""

import json
import subprocess
from types import TracebackType
from typing import Self

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl, Manifest, eventually
from e2e.kube.workloads.client_pods import HOST, ClientPod
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.kube.workloads.model_deployments import DeployedModel

pytestmark = pytest.mark.lane("engines", position=55)

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


def model(name: str, *args: str) -> Manifest:
    return {
        "apiVersion": "serving.fairlead.io/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "hf://Qwen/Qwen3-8B"},
            "engine": {"type": "Sim", "args": list(args)},
            "pools": [{"name": "main", "acceleratorClassName": "nvidia-a100", "minReplicas": 2}],
            "rollout": {"drainTimeout": "30s", "canary": {"steps": [50], "observe": "3m"}},
        },
    }


def canary(found: DeployedModel) -> Manifest:
    return dict(found.get().get("status", {}).get("canary") or {})


def arguments(found: DeployedModel) -> set[str]:
    """Returns the arguments of the model's engines that a change added."""
    known = ("--speed", "--answer-length", "--seed")
    return {
        word for pod in found.pods().values() for word in pod["spec"]["containers"][0]["args"] if word.startswith(known)
    }


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
    here.apply(model(name))
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
    notes = {one["reason"]: one.get("message") or one.get("note") for one in events}
    assert notes[f"Canary{phase}"].lower() == condition["message"].lower()

"""A change of a model on real nodes: held, let through, taken back, by ``fairlead rollout`` and by kubectl, never with fewer engines.

The same for instances of one pod and of several: a Deployment's controller replaces the former, LeaderWorkerSet's the latter.
"""

import subprocess
import sys
import threading
from typing import Self

import pytest
from kube.clients import Client
from kube.kubectl import Kubectl, Manifest, eventually
from kube.models import Model
from kube.release import Release
from kube.report import FULL

UNDO = "fairlead.io/run-revision"
GROUPS = [("group", 2, 2, 1)] if FULL else []
"""Three rollouts of groups of nodes take four minutes of waiting, so they belong to ``make e2e-load``."""


def model(name: str, *, replicas: int, nodes: int) -> Manifest:
    pool = {
        "name": "main",
        "accelerator": "nvidia-a100",
        "replicas": {"min": replicas},
        "parallelism": {"tensor": nodes, "nodes": nodes},
    }
    return {
        "apiVersion": "serving.fairlead.io/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "hf://Qwen/Qwen3-8B"},
            "engine": {"kind": "sim"},
            "pools": [pool],
            "rollout": {"drain": "30s"},
        },
    }


class Fewest:
    """The fewest ready instances that a workload ever told of while the block lasted."""

    def __init__(self, here: Kubectl, workload: str) -> None:
        self.seen: list[int] = []
        shown = "jsonpath={.status.readyReplicas}{'\\n'}"
        self._command = ["kubectl", "-n", here.namespace, "get", workload, "--watch", "-o", shown]
        self._environ = dict(here.environ)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, env=self._environ, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._reader.join()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.seen.append(int(line.strip() or 0))


def rollout(here: Kubectl, *words: str) -> tuple[int, str]:
    """``fairlead rollout …``: its exit code and what it prints."""
    command = [sys.executable, "-m", "fairlead_cli", "rollout", *words, "--namespace", here.namespace]
    done = subprocess.run(command, env=dict(here.environ), capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, done.stdout


def rounds(found: Model) -> set[str]:
    """Which change the engines are of: the variable ``ROUND`` of each."""
    containers = [pod["spec"]["containers"][0] for pod in found.pods().values()]
    return {
        next((one["value"] for one in each.get("env", ()) if one["name"] == "ROUND"), "first") for each in containers
    }


@pytest.mark.timeout(900, func_only=True)
@pytest.mark.parametrize(("name", "replicas", "nodes", "least"), [("one", 2, 1, 2), *GROUPS])
def test_a_change_is_held_let_through_and_taken_back(
    here: Kubectl, installed: Release, name: str, replicas: int, nodes: int, least: int
) -> None:
    """``least``: so many are ready at any time. Of groups that is one fewer than asked: it takes the surge away early."""
    here.apply(model(name, replicas=replicas, nodes=nodes))
    client, found = Client(here, installed).start(), Model(here, name)
    client.first_token(f"{here.namespace}/{name}")
    first = found.settled(pods=replicas * nodes)
    workload = "leaderworkersets" if nodes > 1 else "deployments"
    (one,) = here.get(workload, "-l", f"fairlead.io/model={name}")["items"]
    with Fewest(here, f"{workload}/{one['metadata']['name']}") as fewest:
        assert rollout(here, "pause", name)[0] == 0
        found.patch({"engine": {"env": [{"name": "ROUND", "value": "second"}]}})
        eventually("it says that it waits", lambda: found.condition("Reconciling").get("reason") == "Paused")
        code, said = rollout(here, "status", name)
        assert code == 1
        assert "runs revision 1 of 2: the rollout is paused; revision 1 runs on" in said
        assert found.pods().keys() == first.keys()

        assert rollout(here, "resume", name, "--wait", "200s")[0] == 0
        assert rounds(found) == {"second"}
        assert not found.settled(pods=replicas * nodes).keys() & first.keys()

        before = found.get()
        assert rollout(here, "undo", name, "--wait", "200s")[0] == 0
        assert rounds(found) == {"first"}
        after = found.get()
        assert after["metadata"]["annotations"][UNDO] == "1/2"
        assert (after["spec"], after["metadata"]["generation"]) == (before["spec"], before["metadata"]["generation"])

        here.run("annotate", f"modeldeployment/{name}", f"{UNDO}-")  # as one who has kubectl only
        eventually("the spec runs again", lambda: rounds(found) == {"second"}, seconds=200)
        found.settled(pods=replicas * nodes, seconds=200)
    assert min(fewest.seen) >= least, fewest.seen

    answered = client.begun(f"{here.namespace}/{name}", tokens=400)
    here.run("delete", f"modeldeployment/{name}", "--wait=false")
    got = answered()
    assert (got.status, got.text.rstrip()[-12:]) == (200, "data: [DONE]")
    labels = ("-l", f"fairlead.io/model={name}")
    eventually("its pods are gone", lambda: not here.get("pods", *labels)["items"], seconds=120)

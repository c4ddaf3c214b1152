"""The operating commands against a cluster, with nothing but a kubeconfig."""

import itertools
import json
import tarfile
from pathlib import Path

import pytest

from e2e.kube.cluster_access.index_status import IndexStatus
from e2e.kube.cluster_access.kubectl import Kubectl, eventually, run_fairlead
from e2e.kube.workloads.autoscaled_models import ready_replicas
from e2e.kube.workloads.client_pods import ClientPod
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.kube.workloads.manifests import PACED_ENGINE, model, paced_engine
from e2e.kube.workloads.model_deployments import DeployedModel

pytestmark = pytest.mark.lane("models", position=30)


def test_every_operating_command_works_through_the_kubeconfig(
    here: Kubectl, remembering: HelmRelease, tmp_path: Path
) -> None:
    def fairlead(*words: str, codes: tuple[int, ...] = (0,)) -> str:
        return run_fairlead(here, *words, codes=codes)[1]

    pool = {"acceleratorClassName": PACED_ENGINE, "minReplicas": 2, "maxReplicas": 3}
    targets = {"ttft": "2s", "tpot": "250ms", "target": "95%"}
    here.apply(paced_engine())
    here.apply(model("one", pools=[pool], slo=targets, autoscaling={"mode": "Auto"}))
    name, deployed = f"{here.namespace}/one", DeployedModel(here, "one")
    client = ClientPod(here, remembering).start()
    client.first_token(name)
    eventually("both engines are ready", lambda: ready_replicas(deployed) == 2)
    _fill_caches(client, name, engines=2)
    IndexStatus(remembering, name).wait_until_followed(2)
    pods = deployed.pods()
    in_namespace = ("one", "--namespace", here.namespace)

    assert fairlead("chat", "--model", name, "--message", "Why?").strip()
    last = json.loads(fairlead("explain", "request", "--output", "json"))
    assert last["choices"], last
    (tmp_path / "prompt").write_text("Why?")
    assert json.loads(fairlead("explain", "route", *in_namespace, "--file", str(tmp_path / "prompt"), "-o", "json"))
    assert "one" in fairlead("explain", "scaling", *in_namespace)
    assert fairlead("replay-scaling", "--model", name)

    shown = fairlead("status", *in_namespace)
    assert all(pod["metadata"]["name"] in shown for pod in pods.values())
    assert fairlead("rollout", "status", *in_namespace)
    checks = json.loads(fairlead("check", "--output", "json", codes=(0, 1)))["checks"]
    failed = [line for check in checks if check["outcome"] == "failed" for line in check["lines"] or [check["says"]]]
    assert all(line.startswith("e2e-") and not line.startswith(here.namespace) for line in failed), failed

    assert "one" in fairlead("index", "stats", *in_namespace)
    assert fairlead("index", "verify", *in_namespace)
    (tmp_path / "tokens").write_text(json.dumps(list(range(64))))
    assert json.loads(fairlead("index", "match", "--model", name, "--tokens", str(tmp_path / "tokens")))

    fairlead("support-bundle", "--out", str(tmp_path / "bundle.tar.gz"))
    with tarfile.open(tmp_path / "bundle.tar.gz") as archive:
        assert archive.getnames()


def _fill_caches(client: ClientPod, model: str, *, engines: int) -> None:
    """Sends prompts of more than a block until so many engines have answered one."""
    answered: set[str | None] = set()
    numbers = itertools.count()

    def have_answered() -> bool:
        prompt = f"Why is {next(numbers)} a number? " * 64
        answered.add(client.send(model, prompt=prompt).instance)
        return len(answered - {None}) >= engines

    eventually("each engine has answered", have_answered, describe=lambda: str(answered))

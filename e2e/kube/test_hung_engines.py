"""Engines whose core hangs, although their health check answers, are replaced once."""

from typing import Any

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl, eventually
from e2e.kube.workloads import client_pods
from e2e.kube.workloads.autoscaled_models import autoscaled_model, desired, ready_replicas
from e2e.kube.workloads.client_pods import ClientPod, StreamSession
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.kube.workloads.manifests import SMALL_ENGINE, Manifest, model, small_engine
from e2e.kube.workloads.model_deployments import DeployedModel

pytestmark = pytest.mark.lane("engines", position=70)

_RATE = 4.0
"""Streams per second: both gateways miss the answers of an engine within a minute."""
_SECONDS = 240
"""Seconds until an engine is replaced, at most: missed answers, then the two times of the chart's
`operator.hungEngines`, a minute each."""
_HANG = """
import json, urllib.request
fields = {"content-type": "application/json"}
fault = json.dumps({"kind": "core-hung"}).encode()
urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:8000/sim/faults", fault, fields), timeout=10)
print(urllib.request.urlopen("http://127.0.0.1:8000/health", timeout=10).status)
"""


@pytest.mark.load
@pytest.mark.timeout(600)
@pytest.mark.skipif(not client_pods.FULL, reason="`make e2e LOAD=1` runs it")
def test_engine_whose_core_hangs_is_marked_and_replaced(here: Kubectl, installed: HelmRelease) -> None:
    pool = {"acceleratorClassName": SMALL_ENGINE, "minReplicas": 2}
    found, client = _serve(here, installed, model("stuck", pools=[pool]))
    before = found.pods()
    uid = next(iter(before))

    def serving() -> Manifest:
        conditions = found.pods().get(uid, {}).get("status", {}).get("conditions", [])
        return next((condition for condition in conditions if condition["type"] == "fairlead.io/Serving"), {})

    with StreamSession(client, f"{here.namespace}/stuck", rate=_RATE, tokens=4) as streams:
        _hang(here, before[uid])
        eventually("its pod is marked", lambda: serving().get("status") == "False", seconds=_SECONDS, every=1.0)
        assert "no answer" in serving()["message"]
        eventually("its pod is deleted", lambda: uid not in found.pods(), seconds=_SECONDS, every=1.0)
        eventually("two engines serve", lambda: ready_replicas(found) == 2)
    after = found.pods()
    assert len(after) == 2
    assert set(before) - {uid} <= set(after), "the healthy engine stays"
    assert _unexplained_failures(streams, before[uid]) == []


@pytest.mark.load
@pytest.mark.timeout(600)
@pytest.mark.skipif(not client_pods.FULL, reason="`make e2e LOAD=1` runs it")
def test_autoscaler_orders_one_engine_for_one_that_hangs(here: Kubectl, installed: HelmRelease) -> None:
    found, client = _serve(here, installed, autoscaled_model("scaled", least=2, most=6))
    before = found.pods()
    uid = next(iter(before))
    numbers: set[int] = set()

    def is_replaced() -> bool:
        numbers.add(desired(here, "scaled"))
        return uid not in found.pods()

    with StreamSession(client, f"{here.namespace}/scaled", rate=_RATE / 2, tokens=4) as streams:
        _hang(here, before[uid])
        eventually("its pod is gone", is_replaced, seconds=_SECONDS, every=1.0)
        eventually("two engines serve", lambda: ready_replicas(found) == 2, seconds=_SECONDS, every=1.0)
    assert set(before) - {uid} <= set(found.pods()), "the healthy engine stays"
    assert numbers == {2, 3}
    assert _unexplained_failures(streams, before[uid]) == []


def _serve(here: Kubectl, release: HelmRelease, manifest: Manifest) -> tuple[DeployedModel, ClientPod]:
    here.apply(small_engine(), manifest)
    found, client = DeployedModel(here, manifest["metadata"]["name"]), ClientPod(here, release).start()
    client.first_token(f"{here.namespace}/{found.name}")
    eventually("both engines are ready", lambda: ready_replicas(found) == 2)
    return found, client


def _hang(here: Kubectl, pod: Manifest) -> None:
    assert here.run("exec", pod["metadata"]["name"], "--", "python3", "-c", _HANG).strip() == "200"


def _unexplained_failures(streams: StreamSession, hung: Manifest) -> list[dict[str, Any]]:
    """Returns the failures that the hang does not explain.

    An answer that had begun at the hung engine cannot move: it ends with the error event of an
    engine that fell silent.
    """
    name = hung["metadata"]["name"]
    return [
        failure
        for failure in streams.failures
        if name not in failure["instance"] or '"stream_timeout"' not in failure["outcome"]
    ]

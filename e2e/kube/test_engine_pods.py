"""Rendered pods of simulated engines on a real node: admitted as restricted, soon ready, never
ended in the middle of an answer."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl, eventually
from e2e.kube.workloads.manifests import Manifest, image
from fairlead.api.spec.engine import EngineType
from fairlead_operator.render import InstallationDefaults, render_model
from fairlead_testing.kube.render_cases import default_context, read_case

CASES = Path(__file__).parents[2] / "tests" / "operator" / "render" / "cases"
TOKENS = 600
ASK = """
import json, urllib.request
body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": %d, "ignore_eos": True, "stream": True}).encode()
asked = urllib.request.Request("http://%s:8000/v1/completions", body, {"content-type": "application/json"})
lines = [line for line in urllib.request.urlopen(asked, timeout=120) if line.startswith(b"data:")]
print(len(lines), lines[-1].decode().strip())
"""


def rendered(here: Kubectl, case: str) -> list[Manifest]:
    """The manifests of one case in the test's namespace, with our image; their owner is not there,
    so they name none."""
    model, classes = read_case(CASES / f"{case}.yaml")
    installation = InstallationDefaults(images={EngineType.SIM: image("sim")})
    found = render_model(model, classes, default_context(installation=installation))
    assert found.problems == ()
    for manifest in found.manifests:
        manifest["metadata"]["namespace"] = here.namespace
        del manifest["metadata"]["ownerReferences"]
    return list(found.manifests)


def running(here: Kubectl, selector: str) -> dict[str, Manifest]:
    return {pod["metadata"]["name"]: pod for pod in here.get("pods", "-l", selector)["items"]}


def answered_while(here: Kubectl, asker: str, engine: Manifest, deleted: str) -> str:
    """Returns what the client pod got of a long stream from ``engine`` while the pod ``deleted``
    was deleted."""
    address = engine["status"]["podIP"]
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(here.python, asker, ASK % (TOKENS, address))
        busy = f"import urllib.request as u; print(u.urlopen('http://{address}:8000/metrics').read().decode())"

        def runs() -> bool:
            page = here.python(asker, busy).splitlines()
            return any(line.startswith("vllm:num_requests_running") and float(line.split()[-1]) > 0 for line in page)

        eventually("the stream runs", runs)
        here.run("delete", "pod", deleted, "--wait=false")
        return stream.result(timeout=180)


@pytest.mark.lane("models", position=10)
def test_a_pool_is_ready_soon_and_a_pod_that_goes_answers_to_the_end(here: Kubectl) -> None:
    manifests = rendered(here, "sim")
    for manifest in manifests:
        if manifest["kind"] == "Deployment":
            arguments = manifest["spec"]["template"]["spec"]["containers"][0]["args"]
            arguments[arguments.index("--speed=10")] = "--speed=1"
    here.apply(*manifests)
    here.wait_for_rollout("deployment/tiny-main")
    before = here.get("deployment", "tiny-main")["metadata"]["resourceVersion"]
    here.apply(*manifests)
    assert here.get("deployment", "tiny-main")["metadata"]["resourceVersion"] == before
    (first, engine), (asker, _), *_ = sorted(running(here, "fairlead.io/model=tiny").items())
    got = answered_while(here, asker, engine, first)
    assert got.split() == [str(TOKENS + 1), "data:", "[DONE]"]
    here.wait("delete", f"pod/{first}")


@pytest.mark.lane("engines", position=30)
def test_a_group_whose_worker_goes_answers_to_the_end_and_comes_back(here: Kubectl) -> None:
    manifests = rendered(here, "sim-multi-node")
    (group,) = (manifest for manifest in manifests if manifest["kind"] == "LeaderWorkerSet")
    group["spec"]["replicas"] = 2
    leader = group["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["spec"]["containers"][0]
    leader["args"].append("--speed=0.25")  # a stream is to be still under way when it has been looked for
    here.apply(*manifests)
    here.wait("condition=Available", "leaderworkerset/tiny-main")
    pods = running(here, "fairlead.io/model=tiny")
    leaders = running(here, "fairlead.io/endpoint=true")
    assert (len(pods), len(leaders)) == (4, 2)
    got = answered_while(here, "tiny-main-1", leaders["tiny-main-0"], "tiny-main-0-1")
    assert got.split() == [str(TOKENS + 1), "data:", "[DONE]"]
    uid = leaders["tiny-main-0"]["metadata"]["uid"]

    def back() -> bool:
        now = running(here, "fairlead.io/endpoint=true").get("tiny-main-0")
        return now is not None and now["metadata"]["uid"] != uid

    eventually("the group is made anew", back, seconds=180.0)  # its pods end in good order first
    here.wait("condition=Available", "leaderworkerset/tiny-main")

"""Streams leave engines that end, and none breaks: an eviction, fewer replicas, a rollout, a node
that is drained.

Each stream has 2,000 tokens at 20 a second. So an engine whose pod is gone while the streams still
run has given them to others. How long that took is in the report.

The node is a second one, which is drained as an operator does it. Each of its engines has 50
streams. Its pool's disruption budget lets them go one after the other.

A rollout of eight engines under load is timed twice: once its streams stay to their ends, and once
they move.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from e2e.cluster.nodes.node import SECOND_TAINT
from e2e.kube.cluster_access.kubectl import Kubectl, Manifest, eventually
from e2e.kube.workloads.client_pods import ClientPod, StreamSession, record_result
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.kube.workloads.manifests import PACED_ENGINE, model, paced_engine
from e2e.kube.workloads.model_deployments import DeployedModel
from fairlead_testing.reports import ReportLine

pytestmark = [pytest.mark.lane("engines", position=55), pytest.mark.extended]

STREAMS, TOKENS, RATE = 50, 2_000, 10.0
ENGINES, LOAD_TOKENS, LOAD_RATE = 8, 1_200, 0.7
MAX_SHARE = 0.5
"""Share of its time that a rollout may take if its streams move."""


def seconds_until(change: Callable[[], object], is_done: Callable[[], bool]) -> float:
    """Makes a change; returns the seconds until its engines are gone."""
    begun = time.monotonic()
    change()
    eventually("the engines are gone", is_done, seconds=90)
    return time.monotonic() - begun


@pytest.mark.timeout(600, func_only=True)
def test_streams_leave_engines_that_are_evicted_scaled_away_or_replaced(here: Kubectl, installed: HelmRelease) -> None:
    here.apply(paced_engine(), model("moved", replicas=3, rollout={"drainTimeout": "90s"}))
    client, found = ClientPod(here, installed).start(), DeployedModel(here, "moved")
    client.first_token(f"{here.namespace}/moved")
    first = found.wait_until_settled(pods=3)
    pool = here.get("modeldeployment", "moved")["spec"]["pools"][0]
    seconds: dict[str, float] = {}
    with StreamSession(client, f"{here.namespace}/moved", rate=RATE, tokens=TOKENS) as streams:
        eventually("they run", lambda: bool(streams.seconds) and streams.seconds[-1]["open"] >= STREAMS)
        streams.begin_no_more()
        uid, evicted = next(iter(first.items()))
        seconds["an eviction"] = seconds_until(
            lambda: here.evict(evicted["metadata"]["name"]), lambda: uid not in found.pods(going=True)
        )
        found.wait_until_settled(pods=3)
        seconds["fewer replicas"] = seconds_until(
            lambda: found.patch({"pools": [pool | {"minReplicas": 2}]}), lambda: len(found.pods(going=True)) == 2
        )
        former = found.wait_until_settled(pods=2).keys()
        change = {"engine": {"type": "Sim", "env": [{"name": "ROUND", "value": "second"}]}}
        both = seconds_until(lambda: found.patch(change), lambda: not former & found.pods(going=True).keys())
        seconds["each of two in a rollout"] = both / 2
        still_open = streams.seconds[-1]["open"]
    lines = [
        ReportLine(f"50 streams leave an engine within 10 s: {what}", round(took, 1), took <= 10.0)
        for what, took in seconds.items()
    ]
    figures = {"streams": streams.end["streams"], "longest_gap_seconds": streams.end["longest_gap_seconds"]}
    record_result("moved streams", lines, **figures)
    assert streams.failures == []
    assert still_open >= STREAMS
    assert streams.end["outcomes"] == {"complete": streams.end["streams"]}


class DrainedEngines:
    """The times at which engines of a model were marked for deletion, and at which they were gone.

    Times are of the monotonic clock, by the uids of their pods.
    """

    def __init__(self, found: DeployedModel, uids: set[str]) -> None:
        self.marked: dict[str, float] = {}
        self.gone: dict[str, float] = {}
        self._found = found
        self._uids = uids

    def are_gone(self) -> bool:
        """Looks at the pods now. Whether all are gone."""
        pods, now = self._found.pods(going=True), time.monotonic()
        for uid in self._uids:
            if uid not in pods:
                self.gone.setdefault(uid, now)
            elif "deletionTimestamp" in pods[uid]["metadata"]:
                self.marked.setdefault(uid, now)
        return self.gone.keys() == self._uids

    def seconds(self) -> list[float]:
        """Returns the seconds from mark to end of each, in the order of their ends."""
        return [round(self.gone[uid] - self.marked[uid], 1) for uid in self.gone]


def running_requests(client: ClientPod, pod: Manifest) -> int:
    """Returns the requests that an engine works on."""
    code = f"""
import urllib.request
page = urllib.request.urlopen("http://{pod["status"]["podIP"]}:8000/metrics").read().decode()
print(sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("vllm:num_requests_running")))
"""
    return int(float(client.here.python(client.name, code)))


@pytest.mark.timeout(600, func_only=True)
def test_streams_leave_the_engines_of_a_node_that_is_drained(
    here: Kubectl, installed: HelmRelease, second_node: str
) -> None:
    template = {"spec": {"tolerations": [{"key": SECOND_TAINT, "operator": "Exists"}]}}
    pool = {"acceleratorClassName": PACED_ENGINE, "minReplicas": 4, "template": template}
    here.apply(paced_engine(), model("drained", pools=[pool], rollout={"drainTimeout": "90s"}))
    client, found = ClientPod(here, installed).start(), DeployedModel(here, "drained")
    client.first_token(f"{here.namespace}/drained")
    former = found.wait_until_settled(pods=4)
    there = {uid: pod for uid, pod in former.items() if pod["spec"]["nodeName"] == second_node}
    assert there
    assert len(there) < len(former)
    total = STREAMS * len(former)
    alone = {"conversations": 10 * total}  # no prompt begins like another, which would bring it to the same engine
    with StreamSession(client, f"{here.namespace}/drained", rate=2 * RATE, tokens=TOKENS, prompt=alone) as streams:
        eventually("they run", lambda: bool(streams.seconds) and streams.seconds[-1]["open"] >= total)
        streams.begin_no_more()
        each = [running_requests(client, pod) for pod in there.values()]
        engines, begun = DrainedEngines(found, set(there)), time.monotonic()
        words = ("drain", second_node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s")
        with ThreadPoolExecutor(1) as beside:
            drain = beside.submit(here.run, *words)
            eventually("the engines of the node are gone", engines.are_gone, seconds=90)
            drain.result()
        whole = round(time.monotonic() - begun, 1)
        still_open = streams.seconds[-1]["open"]
    worst = max(engines.seconds())
    line = ReportLine("50 streams leave an engine within 10 s: a drained node", worst, worst <= 10.0)
    record_result(
        "streams of a drained node",
        [line],
        streams=streams.end["streams"],
        outcomes=streams.end["outcomes"],
        streams_on_its_engines=each,
        seconds_of_its_engines=engines.seconds(),
        seconds_of_the_drain=whole,
        longest_gap_seconds=streams.end["longest_gap_seconds"],
    )
    assert streams.failures == []
    assert still_open >= total
    assert streams.end["outcomes"] == {"complete": streams.end["streams"]}
    settled = found.wait_until_settled(pods=4)
    assert second_node not in {pod["spec"]["nodeName"] for pod in settled.values()}


@pytest.mark.timeout(1_500, func_only=True)
def test_rollout_takes_half_the_time_if_its_streams_move(here: Kubectl, installed: HelmRelease) -> None:
    here.apply(paced_engine())
    client, took, gaps = ClientPod(here, installed).start(), dict[str, float](), dict[str, object]()
    for number, resume in enumerate(("Never", "Auto")):
        name = f"rolled-{number}"
        rollout = {"drainTimeout": "120s"}
        here.apply(model(name, replicas=ENGINES, rollout=rollout, routing={"resume": resume}))
        found = DeployedModel(here, name)
        client.first_token(f"{here.namespace}/{name}")
        former = found.wait_until_settled(pods=ENGINES).keys()
        with StreamSession(client, f"{here.namespace}/{name}", rate=LOAD_RATE, tokens=LOAD_TOKENS) as streams:
            enough = LOAD_RATE * LOAD_TOKENS / 20 * 0.8
            eventually("they run", lambda: bool(streams.seconds) and streams.seconds[-1]["open"] >= enough, seconds=120)  # noqa: B023
            change = {"engine": {"type": "Sim", "env": [{"name": "ROUND", "value": "second"}]}}
            begun = time.monotonic()
            found.patch(change)
            eventually(
                "all engines are replaced",
                lambda: not former & found.pods(going=True).keys(),  # noqa: B023
                seconds=900,
            )
            took[resume] = time.monotonic() - begun
        assert streams.failures == []
        assert streams.end["outcomes"] == {"complete": streams.end["streams"]}
        gaps[resume] = streams.end["longest_gap_seconds"]
        here.run("delete", "modeldeployment", name)
    share = took["Auto"] / took["Never"]
    line = ReportLine(
        "a rollout of eight engines takes half its time if streams move", round(share, 2), share <= MAX_SHARE
    )
    seconds = {resume: round(number, 1) for resume, number in took.items()}
    record_result("rollout of eight engines", [line], seconds=seconds, longest_gap_seconds=gaps)
    assert share <= MAX_SHARE

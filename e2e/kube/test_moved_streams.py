"""Streams leave engines that end, and none breaks: an eviction, fewer replicas, a rollout.

Each stream has 2,000 tokens at 20 a second. So an engine whose pod is gone while the streams still
run has given them to others. How long that took is in the report.
"""

import time
from collections.abc import Callable

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl, eventually
from e2e.kube.workloads.client_pods import ClientPod, StreamSession, record_result
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.kube.workloads.manifests import model, paced_engine
from e2e.kube.workloads.model_deployments import DeployedModel
from fairlead_testing.reports import ReportLine

pytestmark = [pytest.mark.lane("engines", position=55), pytest.mark.extended]

STREAMS, TOKENS, RATE = 50, 2_000, 10.0


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

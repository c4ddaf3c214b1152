"""Streams leave engines that end, and none breaks: an eviction, fewer replicas, a rollout.

Each stream has 2,000 tokens at 20 a second. So an engine whose pod is gone while the streams still
run has given them to others. How long that took is in the report.

A rollout of eight engines under load is timed twice: once its streams stay to their ends, and once
they move.
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

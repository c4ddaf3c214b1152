"""The pods of a model that are marked and deleted, by the verdict about their engines."""

from datetime import UTC, datetime
from typing import Any

import pytest

from fairlead.fleet.hung_engines import EjectionReport, HungVerdict
from fairlead.kube.resources import Manifest, name_of
from fairlead_operator.hung_engines.gateway_reports import GatewayReport, InstanceReport
from fairlead_operator.hung_engines.restart_plan import (
    HungEnginePlan,
    PodMark,
    RestartRules,
    plan_restarts,
    pod_verdicts,
    serving_condition,
)

WALL = 1_800_000_000.0
HUNG = HungVerdict(True, "2 gateways get no answer", ("gateway-a", "gateway-b"))
ANSWERS = HungVerdict(False, "gateway-a: had an answer of it lately")
RULES = RestartRules(60.0, 10)


def at(age_seconds: float) -> str:
    return datetime.fromtimestamp(WALL - age_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(name: str, *, marked: float | None = None, ready: bool = True, pool: str = "main", **more: Any) -> Manifest:
    """Returns a pod. marked: seconds since its condition `fairlead.io/Serving` is False."""
    conditions = [{"type": "Ready", "status": str(ready)}]
    if marked is not None:
        conditions.append({"type": "fairlead.io/Serving", "status": "False", "lastTransitionTime": at(marked)})
    labels = {"fairlead.io/pool": pool, "fairlead.io/endpoint": "true", **more.pop("labels", {})}
    metadata = {"name": name, "uid": f"uid-{name}", "labels": labels, **more.pop("metadata", {})}
    return {"metadata": metadata, "status": {"phase": "Running", "conditions": conditions, **more}}


def plan(*pods: Manifest, rules: RestartRules = RULES, **verdicts: HungVerdict) -> HungEnginePlan:
    return plan_restarts(pods, {f"uid-{name}": verdict for name, verdict in verdicts.items()}, WALL, rules)


def deleted(planned: HungEnginePlan) -> list[str]:
    return [name_of(restart) for restart in planned.restarts]


def test_pod_that_hangs_is_marked_first_and_not_deleted_yet() -> None:
    planned = plan(pod("a"), pod("b"), a=HUNG, b=ANSWERS)
    (mark,) = planned.marks
    assert (name_of(mark.pod), mark.is_serving, mark.reason) == ("a", False, "EngineHung")
    assert mark.message == "2 gateways get no answer; reported by gateway-a, gateway-b"
    assert (planned.restarts, planned.waiting) == ((), {"a": "it was not marked yet"})
    assert [name_of(hung) for hung in planned.hung] == ["a"]


def test_long_report_of_a_gateway_does_not_make_a_long_message() -> None:
    (mark,) = plan(pod("a"), a=HungVerdict(True, "x" * 5_000_000, ("gateway-a",))).marks
    (unmark,) = plan(pod("a", marked=5.0), a=HungVerdict(False, "x" * 5_000_000)).marks
    assert (len(mark.message), len(unmark.message)) == (1_024, 1_024)


def test_condition_has_the_fields_of_a_pod_condition() -> None:
    assert serving_condition(PodMark(pod("a"), True, "no longer hung"), "2026-11-20T17:43:20Z") == {
        "type": "fairlead.io/Serving",
        "status": "True",
        "reason": "EngineAnswers",
        "message": "no longer hung",
        "lastTransitionTime": "2026-11-20T17:43:20Z",
    }


def test_marked_pod_is_deleted_after_the_grace_and_not_before() -> None:
    assert plan(pod("a", marked=59.0), a=HUNG).waiting == {"a": "it is restarted in 1s"}
    planned = plan(pod("a", marked=60.0), a=HUNG)
    assert (planned.marks, deleted(planned)) == ((), ["a"])


def test_pod_whose_engine_answers_again_is_unmarked_and_stays() -> None:
    planned = plan(pod("a", marked=600.0), a=ANSWERS)
    (mark,) = planned.marks
    assert (mark.is_serving, mark.message) == (True, "no longer hung: gateway-a: had an answer of it lately")
    assert (planned.restarts, planned.hung) == ((), ())


def test_marked_pod_without_a_verdict_stays_as_it_is() -> None:
    assert plan(pod("a", marked=600.0)) == HungEnginePlan()


def test_healthy_pods_get_no_condition() -> None:
    assert plan(pod("a"), pod("b"), a=ANSWERS, b=ANSWERS) == HungEnginePlan()


def test_without_restarts_pods_are_only_marked() -> None:
    planned = plan(pod("a", marked=600.0), pod("b"), rules=RestartRules(None, 10), a=HUNG, b=HUNG)
    assert [name_of(mark.pod) for mark in planned.marks] == ["b"]
    assert (planned.restarts, planned.waiting["a"]) == ((), "restarts are off")


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (pod("b", ready=False), "the pod b is not ready"),
        (pod("b", metadata={"deletionTimestamp": at(1.0)}), "the pod b is being deleted"),
        (pod("b", ready=False, labels={"fairlead.io/endpoint": ""}), "the pod b is not ready"),
    ],
)
def test_pool_with_another_pod_not_ready_is_left_alone(other: Manifest, reason: str) -> None:
    planned = plan(pod("a", marked=600.0), other, a=HUNG)
    assert (planned.restarts, planned.waiting) == ((), {"a": reason})


@pytest.mark.parametrize(
    "other",
    [
        pod("b", ready=False, pool="other"),
        pod("b", ready=False, phase="Failed"),
        pod("b", ready=False, conditions=[{"type": "PodScheduled", "status": "False"}]),
    ],
)
def test_pods_of_other_pools_ended_and_unscheduled_ones_block_no_restart(other: Manifest) -> None:
    assert deleted(plan(pod("a", marked=600.0), other, a=HUNG)) == ["a"]


def test_one_of_ten_pods_is_deleted_at_a_time_and_the_longest_marked_first() -> None:
    small = [pod(f"p{number}", marked=600.0 + number) for number in range(4)]
    planned = plan(*small, p0=HUNG, p1=HUNG, p2=HUNG, p3=HUNG)
    assert deleted(planned) == ["p3"]
    assert planned.waiting["p0"] == "1 of 4 instances of the pool may restart at a time"
    large = [pod(f"p{number:02d}", marked=600.0 + number) for number in range(25)]
    verdicts = {f"p{number:02d}": HUNG for number in range(25)}
    assert deleted(plan(*large, **verdicts)) == ["p24", "p23"]


def test_pod_that_is_not_ready_is_left_to_kubelet() -> None:
    planned = plan(pod("a", marked=600.0, ready=False), a=HUNG)
    assert (planned.restarts, planned.waiting) == ((), {"a": "it is not ready: kubelet restarts its engine"})


def test_engine_that_kubelet_restarted_gets_the_grace_anew() -> None:
    started = [{"state": {"running": {"startedAt": at(30.0)}}}]
    assert not plan(pod("a", marked=600.0, containerStatuses=started), a=HUNG).restarts
    started = [{"state": {"running": {"startedAt": at(90.0)}}}, {"state": {"waiting": {}}}]
    assert deleted(plan(pod("a", marked=600.0, containerStatuses=started), a=HUNG)) == ["a"]


def test_sleeping_pods_and_pods_that_are_deleted_already_stay() -> None:
    asleep = pod("a", marked=600.0, metadata={"annotations": {"fairlead.io/sleep": "1-asleep"}})
    assert plan(asleep, a=HUNG).waiting == {"a": "it is put to sleep or woken"}
    assert plan(pod("a", marked=600.0, metadata={"deletionTimestamp": at(1.0)}), a=HUNG) == HungEnginePlan()


def group_pod(name: str, index: int, *, leader: bool, **more: Any) -> Manifest:
    labels = {
        "leaderworkerset.sigs.k8s.io/name": "big",
        "leaderworkerset.sigs.k8s.io/group-index": str(index),
        "fairlead.io/endpoint": "true" if leader else "",
    }
    return pod(name, labels=labels, **more)


def test_group_restarts_by_its_leader_whatever_its_own_workers_do() -> None:
    pods = [
        group_pod("big-0", 0, leader=True, marked=600.0),
        group_pod("big-0-1", 0, leader=False, ready=False),
        group_pod("big-1", 1, leader=True),
        group_pod("big-1-1", 1, leader=False),
    ]
    assert deleted(plan_restarts_of(pods, "big-0")) == ["big-0"]
    pods[3] = group_pod("big-1-1", 1, leader=False, ready=False)
    assert plan_restarts_of(pods, "big-0").waiting == {"big-0": "the pod big-1-1 is not ready"}


def plan_restarts_of(pods: list[Manifest], name: str) -> HungEnginePlan:
    return plan_restarts(pods, {f"uid-{name}": HUNG}, WALL, RULES)


def workload(replicas: int, *, pool: str = "main", **status: Any) -> Manifest:
    return {
        "kind": "Deployment",
        "metadata": {"name": pool, "labels": {"fairlead.io/pool": pool}},
        "spec": {"replicas": replicas},
        "status": status,
    }


def test_pod_waits_while_another_instance_of_its_pool_is_missing() -> None:
    pods = (pod("b", marked=90.0), pod("c"), pod("x", pool="other"))
    verdicts = {"uid-b": HUNG, "uid-c": ANSWERS}
    planned = plan_restarts(pods, verdicts, WALL, RULES, [workload(3), workload(1, pool="other")])
    assert (deleted(planned), planned.waiting) == ([], {"b": "1 of 3 instances of the pool are missing"})
    replaced = plan_restarts((*pods, pod("d")), verdicts, WALL, RULES, [workload(3)])
    assert deleted(replaced) == ["b"]


def test_pod_does_not_wait_for_an_instance_that_may_not_be_created() -> None:
    refused = workload(3, conditions=[{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}])
    planned = plan_restarts((pod("b", marked=90.0), pod("c")), {"uid-b": HUNG}, WALL, RULES, [refused])
    assert deleted(planned) == ["b"]


def test_clock_that_goes_back_does_not_postpone_a_restart_by_as_much() -> None:
    assert deleted(plan(pod("a", marked=-3_600.0), pod("b"), a=HUNG)) == ["a"]
    assert plan(pod("a", marked=-30.0), pod("b"), a=HUNG).waiting == {"a": "it is restarted in 1m30s"}
    started = {"containerStatuses": [{"state": {"running": {"startedAt": at(30.0)}}}]}
    assert plan(pod("a", marked=-3_600.0, **started), pod("b"), a=HUNG).waiting == {"a": "it is restarted in 30s"}


# --- the verdict about a pod, from what gateways report of its instances


EJECTED = EjectionReport(90.0, "3 timeouts", 0, 1)
PROBED = EjectionReport(90.0, "3 timeouts", 2, 1)


def gateway(name: str, *instances: InstanceReport) -> GatewayReport:
    return GatewayReport(name, instances)


def verdicts(*reports: GatewayReport) -> dict[str, HungVerdict]:
    return pod_verdicts(reports, 60.0)


def test_two_gateways_that_ejected_the_instance_make_its_pod_hang() -> None:
    by_pod = verdicts(gateway("a", InstanceReport("u/1/0", EJECTED)), gateway("b", InstanceReport("u/1/0", EJECTED)))
    assert by_pod["u"].is_hung
    assert by_pod["u"].voters == ("a", "b")


def test_missing_gateway_votes_neither_for_nor_against() -> None:
    missing = GatewayReport("b", error="no answer within 5 s")
    assert verdicts(gateway("a", InstanceReport("u/1/0", PROBED)), missing)["u"].is_hung
    assert not verdicts(gateway("a", InstanceReport("u/1/0", EJECTED)), missing)["u"].is_hung


def test_gateway_with_a_recent_answer_vetoes_and_one_without_is_left_out() -> None:
    voting = gateway("a", InstanceReport("u/1/0", PROBED))
    assert not verdicts(voting, gateway("b", InstanceReport("u/1/0", None, 59.0)))["u"].is_hung
    assert verdicts(voting, gateway("b", InstanceReport("u/1/0", None, 61.0)))["u"].is_hung
    assert verdicts(voting, gateway("b", InstanceReport("u/1/0", None, None)))["u"].is_hung


def test_pod_without_any_knowledge_has_no_verdict() -> None:
    assert verdicts(gateway("a", InstanceReport("u/1/0", None)), gateway("b", InstanceReport("u/1/0"))) == {}
    assert verdicts(GatewayReport("a", error="no answer")) == {}


def test_pod_with_ranks_hangs_only_if_each_rank_does() -> None:
    def reports(second: InstanceReport) -> list[GatewayReport]:
        return [gateway(name, InstanceReport("u/1/0", EJECTED), second) for name in ("a", "b")]

    verdict = verdicts(*reports(InstanceReport("u/1/1", EJECTED)))["u"]
    assert verdict.is_hung
    assert verdict.reason.startswith("all 2 ranks hang; the first one: 2 gateways get no answer")
    assert verdicts(*reports(InstanceReport("u/1/1", None, 1.0))) == {"u": HungVerdict(False, "1 of 2 ranks hang")}
    assert verdicts(*reports(InstanceReport("u/1/1", None))) == {}, "nothing is known of the second rank"

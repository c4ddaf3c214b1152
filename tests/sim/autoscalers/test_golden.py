"""HPA and KPA against what Kubernetes' and Knative's own Go code did: 200 vectors each, see
tests/sim/autoscalers/golden/README.md."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairlead_sim.autoscalers import hpa, kpa
from fairlead_sim.autoscalers.hpa import (
    PolicyKind,
    PolicySelect,
    ScalingBehavior,
    ScalingPolicy,
    ScalingRules,
)

GOLDEN = Path(__file__).parent / "golden"
PHASES = {"R": hpa.PodPhase.RUNNING, "P": hpa.PodPhase.PENDING, "T": hpa.PodPhase.LEAVING, "F": hpa.PodPhase.LEAVING}


HPA, KPA = (
    [json.loads(line) for line in (GOLDEN / f"{name}.jsonl").read_text().splitlines()] for name in ("hpa", "kpa")
)


def hpa_settings(vector: Any) -> hpa.HpaSettings:
    behavior = vector["behavior"]
    return hpa.HpaSettings(
        target=vector["target"] / 1000,
        minimum=vector["min"],
        maximum=vector["max"],
        tolerance=vector["tolerance"],
        down_window_seconds=vector["down_window"],
        behavior=None if behavior is None else ScalingBehavior(up=rules(behavior["up"]), down=rules(behavior["down"])),
    )


def rules(written: Any) -> ScalingRules:
    return ScalingRules(
        policies=tuple(
            ScalingPolicy(PolicyKind(policy["type"]), policy["value"], policy["period"])
            for policy in written["policies"]
        ),
        window_seconds=written["window"],
        select=PolicySelect(written["select"]),
        tolerance=written["tolerance"],
    )


def hpa_seen(vector: Any, step: Any) -> hpa.HpaObservation:
    seen = hpa.HpaObservation(step["at"], step["spec"], step["status"])
    if step["blind"]:
        return seen
    if vector["metric"] == "external":
        return hpa.HpaObservation(seen.now, seen.spec, seen.status, total_milli=step["total"])
    pods = tuple(hpa.HpaPod(PHASES[pod[0]], int(pod[1:]) if pod[1:] else None) for pod in step["pods"])
    return hpa.HpaObservation(seen.now, seen.spec, seen.status, pods=pods)


def hpa_answers(vector: Any) -> list[int]:
    settings, state, answers = hpa_settings(vector), hpa.HpaState(), []
    for step in vector["steps"]:
        state, plan = hpa.reconcile(state, hpa_seen(vector, step), settings)
        answers.append(step["spec"] if plan is None else plan.replicas)
    return answers


def kpa_answers(vector: Any) -> list[tuple[int | None, int | None]]:
    settings = kpa.KpaSettings(
        target=vector["target"],
        minimum=vector["min"],
        maximum=vector["max"],
        stable_window_seconds=vector["stable_window"],
        panic_window_seconds=vector["panic_window"],
        panic_threshold=vector["panic_threshold"],
        max_up_rate=vector["max_up_rate"],
        max_down_rate=vector["max_down_rate"],
        down_delay_seconds=vector["down_delay"],
        activation_scale=vector["activation_scale"],
    )
    state, answers = kpa.initial_state(settings, 0.0, vector["steps"][0]["ready"]), []
    for step in vector["steps"]:
        first = step["at"] - len(step["records"]) + 1
        for second, value in enumerate(step["records"], first):
            state = state if value is None else kpa.record(state, second, value)
        state, wanted = kpa.scale(state, settings, step["at"], step["ready"])
        answers.append((wanted, None if wanted is None else kpa.clamp_replicas(settings, wanted)))
    return answers


@pytest.mark.parametrize("number", range(200))
def test_hpa_does_what_kubernetes_did(number: int) -> None:
    vector = HPA[number]
    assert hpa_answers(vector) == [step["want"] for step in vector["steps"]]


@pytest.mark.parametrize("number", range(200))
def test_kpa_does_what_knative_did(number: int) -> None:
    vector = KPA[number]
    assert kpa_answers(vector) == [(step["want"], step["bounded"]) for step in vector["steps"]]


def count(steps: list[Any], **tests: Callable[[Any], bool]) -> Counter[str]:
    return Counter({name: sum(map(test, steps)) for name, test in tests.items()})


def test_hpa_vectors_go_everywhere() -> None:
    assert len(HPA) == 200
    steps = [step for vector in HPA for step in vector["steps"]]
    seen = count(
        steps,
        up=lambda step: step["want"] > step["spec"],
        down=lambda step: step["want"] < step["spec"],
        same=lambda step: step["want"] == step["spec"],
        blind=lambda step: step["blind"],
        missing=lambda step: "R" in step["pods"],
        pending=lambda step: any(pod.startswith("P") for pod in step["pods"]),
        leaving=lambda step: any(pod[0] in "TF" for pod in step["pods"]),
        zero=lambda step: step["spec"] == 0,
    )
    assert min(seen.values()) >= 15, seen
    assert sum(vector["behavior"] is None for vector in HPA) >= 60
    assert sum(vector["metric"] == "external" for vector in HPA) >= 40


def test_kpa_vectors_go_everywhere() -> None:
    assert len(KPA) == 200
    steps = [step for vector in KPA for step in vector["steps"]]
    seen = count(
        steps,
        up=lambda step: step["want"] is not None and step["want"] > step["ready"],
        down=lambda step: step["want"] is not None and step["want"] < step["ready"],
        no_data=lambda step: step["want"] is None,
        bounded=lambda step: step["want"] != step["bounded"],
        to_zero=lambda step: step["want"] == 0,
    )
    assert min(seen.values()) >= 40, seen
    assert sum(vector["down_delay"] > 0 for vector in KPA) >= 60

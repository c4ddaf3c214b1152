"""Checks of autoscalers: each names its own missing part, and none applies where none is wanted."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from fairlead_autoscaler.kubernetes.manager import LEASE_NAME
from fairlead_cli.cluster.access.permissions import AUTOSCALER_LEASE_NAME
from fairlead_cli.cluster.checks.check import CheckOutcome, Verdict
from fairlead_cli.cluster.checks.runner import run_checks
from fairlead_cli.cluster.components import COMPONENT_LABEL
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.object_fields import MissingValue

Build = Mapping[str, Callable[..., Any]]
CHECKS = ("installed", "ready", "secrets", "rights", "leads", "hears")


def problems(facts: ClusterFacts) -> dict[str, Verdict]:
    """Returns the verdicts that are not OK."""
    return {one.check.id: one.verdict for one in run_checks(facts) if one.verdict.outcome is not CheckOutcome.OK}


def reporting(facts: ClusterFacts, build: Build, *pages: str) -> ClusterFacts:
    """Returns facts in which the autoscalers' metrics are these pages."""
    assert not isinstance(facts.pods, MissingValue)
    pods = [pod for pod in facts.pods if pod["metadata"]["labels"][COMPONENT_LABEL] == "autoscaler"]
    reports = [build["pod_report"](pod, page) for pod, page in zip(pods, pages, strict=True)]
    return replace(facts, pod_reports={**facts.pod_reports, "autoscaler": reports})


def page(leads: int = 0, frozen: int = 0, gateways: int = 2, missing: int = 0) -> str:
    values = {"leads": leads, "frozen": frozen, "gateways": gateways, "gateways_missing": missing}
    return "".join(f"fairlead_autoscaler_{name} {value}\n" for name, value in values.items())


def test_healthy_installation_passes_all_autoscaler_checks(facts: ClusterFacts) -> None:
    notes = {one.check.id: one.verdict.note for one in run_checks(facts)}
    assert {f"autoscaler-{name}" for name in CHECKS} <= notes.keys()
    assert notes["autoscaler-leads"] == "fairlead-autoscaler-0"
    assert notes["autoscaler-hears"] == "4 of 4 gateway answers"


def test_an_installation_without_a_leader_fails(facts: ClusterFacts, builders: Build) -> None:
    found = problems(reporting(facts, builders, page(), page()))
    assert {name: one.outcome for name, one in found.items()} == {"autoscaler-leads": CheckOutcome.FAILED}


def test_an_unreached_autoscaler_may_lead(facts: ClusterFacts, builders: Build) -> None:
    first, second = reporting(facts, builders, page(), page()).pod_reports["autoscaler"]
    silent = replace(first, metrics=MissingValue("the API server does not reach pod x"))
    found = problems(replace(facts, pod_reports={**facts.pod_reports, "autoscaler": [silent, second]}))
    assert found["autoscaler-leads"].outcome is CheckOutcome.UNKNOWN


def test_a_frozen_leader_and_silent_gateways_are_warnings(facts: ClusterFacts, builders: Build) -> None:
    found = problems(reporting(facts, builders, page(leads=1, frozen=1, missing=1), page(gateways=0)))
    assert {name: one.outcome for name, one in found.items()} == {
        "autoscaler-leads": CheckOutcome.WARNING,
        "autoscaler-hears": CheckOutcome.WARNING,
    }
    assert found["autoscaler-hears"].lines == (
        "1 of 2 gateways do not answer fairlead-autoscaler-0",
        "fairlead-autoscaler-1 knows no gateway",
    )


@pytest.mark.parametrize("mode", ["Auto", "Advise", "Disabled", None])
def test_a_missing_autoscaler_warns_only_where_a_model_wants_one(
    facts: ClusterFacts, builders: Build, mode: str | None
) -> None:
    assert not isinstance(facts.deployments, MissingValue)
    model = builders["model"]()
    model["spec"]["autoscaling"] = {"mode": mode} if mode else None
    kept = [one for one in facts.deployments if one["metadata"]["labels"][COMPONENT_LABEL] != "autoscaler"]
    found = problems(replace(facts, deployments=kept, models=[model]))
    assert ("autoscaler-installed" in found) is (mode in ("Auto", "Advise"))
    if mode == "Auto":
        assert "chat/tiny has autoscaling.mode Auto" in found["autoscaler-installed"].lines[0]


def test_a_removed_right_is_named(facts: ClusterFacts) -> None:
    mine = dict.fromkeys(facts.account_permissions["autoscaler", "fairlead"], False)
    denied = replace(facts, account_permissions={**facts.account_permissions, ("autoscaler", "fairlead"): mine})
    lines = problems(denied)["autoscaler-rights"].lines
    assert any("patch deployments.apps/scale" in line or "patch deployments/scale" in line for line in lines), lines


def test_the_lease_is_the_autoscalers() -> None:
    assert AUTOSCALER_LEASE_NAME == LEASE_NAME

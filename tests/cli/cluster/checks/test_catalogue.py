"""The list of checks against the documentation, the chart and the API."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fairlead.api.conditions import condition_types, reasons
from fairlead_cli.cluster.access.permissions import COMPONENTS_WITH_PERMISSIONS, component_permissions
from fairlead_cli.cluster.checks.analyzers.models import STALL_REASONS
from fairlead_cli.cluster.checks.catalogue import CHECKS
from fairlead_cli.cluster.checks.check import MAX_LINES, OLDEST_KUBERNETES, Check, CheckOutcome, CheckResult, Verdict
from fairlead_cli.cluster.checks.command import render_lines
from fairlead_cli.cluster.checks.runner import SEEDED_FAULTS
from fairlead_cli.cluster.components import GATEWAY, OPERATOR
from fairlead_cli.cluster.facts_collector import dry_run_pod
from fairlead_operator.kube.leader_election import LEASE_NAME
from fairlead_testing.yaml_documents import load_document

ROOT = Path(__file__).parents[4]
Build = Mapping[str, Callable[..., Any]]


def test_every_check_has_an_anchor_in_the_reference() -> None:
    named = {ROOT / "docs" / check.anchor.partition("#")[0] for check in CHECKS}
    (page,) = (path.with_suffix(".md") for path in named)
    headings = re.findall(r"^### (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == [check.anchor.partition("#")[2] for check in CHECKS]
    assert len(set(headings)) == len(headings)


def test_ten_seeded_faults_have_a_check_each() -> None:
    assert len(SEEDED_FAULTS) == len({fault.check for fault in SEEDED_FAULTS}) == 10
    assert {fault.check for fault in SEEDED_FAULTS} <= {check.id for check in CHECKS}


def test_every_check_has_meaning_and_remedy() -> None:
    for check in CHECKS:
        assert check.title[0].islower() or check.title.startswith(
            ("Kubernetes", "LeaderWorkerSets", "NetworkPolicies", "Redis")
        ), check.id
        assert check.meaning.endswith(".")
        assert len(check.remedy) > 20


def test_oldest_kubernetes_is_that_of_the_chart() -> None:
    chart = load_document((ROOT / "charts" / "fairlead" / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["kubeVersion"] == f">={OLDEST_KUBERNETES[0]}.{OLDEST_KUBERNETES[1]}.0-0"


def granted(build: Build, component: str) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for manifest in build["chart"]()
        if manifest["kind"] in ("Role", "ClusterRole") and f"-{component}" in manifest["metadata"]["name"]
        for rule in manifest["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("component", COMPONENTS_WITH_PERMISSIONS)
def test_checked_permissions_are_those_of_the_chart(builders: Build, component: str) -> None:
    revoked = "fairlead-revoked-keys" if component == GATEWAY else None
    asked = component_permissions(component, "fairlead", [], revocation_list=revoked)
    assert {(row.group, row.resource, row.verb) for row in asked} == granted(builders, component)


def test_permissions_are_checked_per_watched_namespace() -> None:
    asked = component_permissions(OPERATOR, "fairlead", ["a", "b"])
    assert {row.namespace for row in asked if row.resource == "pods" and row.verb == "delete"} == {"a", "b"}
    assert {row.namespace for row in asked if row.resource == "pods" and row.verb == "list"} == {"a", "b", "fairlead"}
    reading = component_permissions(OPERATOR, "fairlead", ["a", "b"], restarts_engines=False)
    assert {(row.namespace, row.verb) for row in reading if row.resource.startswith("pods")} == {
        (namespace, verb) for namespace in ("a", "b") for verb in ("list", "watch")
    }
    assert {(row.namespace, row.name) for row in asked if row.resource == "leases" and row.verb == "get"} == {
        ("fairlead", LEASE_NAME)
    }


def test_dry_run_pod_matches_the_charts_pods(builders: Build) -> None:
    spec = dry_run_pod("x")["spec"]
    for manifest in builders["chart"]():
        if manifest["kind"] == "Deployment":
            pods = manifest["spec"]["template"]["spec"]
            assert spec["securityContext"] == pods["securityContext"]
            assert spec["containers"][0]["securityContext"] == pods["containers"][0]["securityContext"]


def test_reasons_with_checks_are_stall_reasons() -> None:
    stalling = {reason.reason for reason in reasons() if reason.type == "Stalled"}
    assert set().union(*STALL_REASONS.values()) <= stalling
    assert {str(condition.type) for condition in condition_types()} >= {"Ready", "Stalled", "NameTaken", "Reconciling"}


# --- how it is printed --------------------------------------------------------------------------------------------------


def printed(check: Check, verdict: Verdict) -> list[str]:
    return [line.plain for line in render_lines([CheckResult(check, verdict)])]


def test_passed_check_has_one_line_and_failed_one_four() -> None:
    check = next(check for check in CHECKS if check.id == "redis")
    well = printed(check, Verdict(CheckOutcome.OK, note="2 of 2"))
    assert well == ["gateway", "√ Redis answers the gateways (2 of 2)", "", "1 check: 1 passed"]
    assert printed(check, Verdict(CheckOutcome.FAILED, ("away",))) == [
        "gateway",
        "× Redis answers the gateways",
        "    away",
        "    fix: Look at the Redis that the Secret's url names: its pod where it is the chart's, else address, password, TLS and "
        "NetworkPolicies",
        "    documentation: reference/checks.html#redis",
        "",
        "1 check: 0 passed, 1 failed",
    ]
    assert printed(check, Verdict(CheckOutcome.UNKNOWN, ("why",)))[2:4] == [
        "    why",
        "    documentation: reference/checks.html#redis",
    ]


def test_findings_after_the_first_are_counted() -> None:
    output = printed(CHECKS[0], Verdict(CheckOutcome.FAILED, tuple(map(str, range(MAX_LINES + 3)))))
    assert f"    {MAX_LINES - 1}" in output
    assert "    and 3 more" in output

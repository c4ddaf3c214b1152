"""Checks of indexers: each names its own missing part, and none applies without an index."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from fairlead_cli.cluster.checks.check import CheckOutcome, Verdict
from fairlead_cli.cluster.checks.runner import run_checks
from fairlead_cli.cluster.components import COMPONENT_LABEL
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.object_fields import MissingValue

Build = Mapping[str, Callable[..., Any]]
CHECKS = ("installed", "ready", "secrets", "rights", "leads", "hears")
CONNECTED = "fairlead_indexer_redis_connected 1\n"


def said(facts: ClusterFacts) -> dict[str, Verdict]:
    """Returns the verdicts that are not OK."""
    return {one.check.id: one.verdict for one in run_checks(facts) if one.verdict.outcome is not CheckOutcome.OK}


def telling(facts: ClusterFacts, build: Build, *pages: str) -> ClusterFacts:
    pods = [one for one in facts.pods if one["metadata"]["labels"][COMPONENT_LABEL] == "indexer"]
    told = [build["pod_report"](pod, page) for pod, page in zip(pods, pages, strict=True)]
    return replace(facts, pod_reports={**facts.pod_reports, "indexer": told})


def without(facts: ClusterFacts, *components: str) -> ClusterFacts:
    kept = [one for one in facts.deployments if one["metadata"]["labels"][COMPONENT_LABEL] not in components]
    return replace(facts, deployments=kept)


def test_healthy_installation_passes_all_indexer_checks(facts: ClusterFacts) -> None:
    notes = {one.check.id: one.verdict.note for one in run_checks(facts)}
    assert {f"indexer-{name}" for name in CHECKS} <= notes.keys()
    assert (notes["indexer-leads"], notes["indexer-hears"]) == ("1 of 1", "2 of 2 engines")


def test_model_without_a_leading_indexer_fails(facts: ClusterFacts, builders: Build) -> None:
    idle, leads = (f'{CONNECTED}fairlead_indexer_leads{{model="chat/tiny"}} {number}\n' for number in (0, 1))
    assert said(telling(facts, builders, idle, leads)) == {}
    found = said(telling(facts, builders, idle, idle))
    assert found["indexer-leads"].lines == ("no indexer reads the engines of chat/tiny",)
    assert {name: one.outcome for name, one in found.items()} == {"indexer-leads": CheckOutcome.FAILED}


def test_unreached_indexer_makes_leadership_unknown(facts: ClusterFacts) -> None:
    first, second = facts.pod_reports["indexer"]
    silent = replace(first, metrics=MissingValue("the API server does not reach pod x"))
    found = said(replace(facts, pod_reports={**facts.pod_reports, "indexer": [silent, second]}))
    assert found["indexer-leads"].outcome is CheckOutcome.UNKNOWN
    assert "does not reach pod x" in found["indexer-leads"].lines[0]


def test_missing_engine_or_redis_connections_are_warnings(facts: ClusterFacts, builders: Build) -> None:
    page = (
        'fairlead_indexer_redis_connected 0\nfairlead_indexer_leads{model="chat/tiny"} 1\n'
        'fairlead_indexer_instances{model="chat/tiny"} 4\nfairlead_indexer_connected{model="chat/tiny"} 3\n'
    )
    (found,) = said(telling(facts, builders, page, CONNECTED)).values()
    assert found.outcome is CheckOutcome.WARNING
    assert [line.partition(" ")[2] for line in found.lines] == [
        "is not connected to Redis",
        "hears 3 of 4 engines of chat/tiny",
    ]


def test_missing_indexer_warns_only_for_gateways_with_redis(facts: ClusterFacts) -> None:
    found = said(without(facts, "indexer"))
    assert {name: one.outcome for name, one in found.items()} == {"indexer-installed": CheckOutcome.WARNING}
    assert "has a Redis, and no indexer writes the index there" in found["indexer-installed"].lines[0]
    alone = without(facts, "indexer", "redis")
    for one in alone.deployments:
        (container,) = one["spec"]["template"]["spec"]["containers"]
        container["env"] = [each for each in container["env"] if each["name"] != "FAIRLEAD_REDIS_URL"]
    asked = {one.check.id for one in run_checks(alone)} - {"indexer-rights"}  # as they were read
    assert not [name for name in asked if name.startswith("indexer")]


@pytest.mark.parametrize("gone", ["secrets", "rights"])
def test_missing_secret_and_permission_are_named(facts: ClusterFacts, gone: str) -> None:
    if gone == "secrets":
        away = MissingValue('secrets "fairlead-redis" not found', is_absent=True)
        facts = replace(facts, secrets={**facts.secrets, ("fairlead", "fairlead-redis"): away})
    else:
        mine = dict.fromkeys(facts.account_permissions["indexer", "fairlead"], False)
        facts = replace(facts, account_permissions={**facts.account_permissions, ("indexer", "fairlead"): mine})
    assert said(facts)[f"indexer-{gone}"].outcome is CheckOutcome.FAILED

"""The checks of indexers: each says what is away, by its own name, and nothing where there is nothing to index."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from fairlead_cli.cluster.checks.runner import run_checks
from fairlead_cli.cluster.checks.verdict import CheckOutcome, Verdict
from fairlead_cli.cluster.components import COMPONENT_LABEL
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.missing_value import MissingValue

Build = Mapping[str, Callable[..., Any]]
CHECKS = ("installed", "ready", "secrets", "rights", "leads", "hears")
CONNECTED = "fairlead_indexer_redis_connected 1\n"


def said(facts: ClusterFacts) -> dict[str, Verdict]:
    """What is not well of all."""
    return {one.check.id: one.verdict for one in run_checks(facts) if one.verdict.outcome is not CheckOutcome.OK}


def telling(facts: ClusterFacts, build: Build, *pages: str) -> ClusterFacts:
    pods = [one for one in facts.pods if one["metadata"]["labels"][COMPONENT_LABEL] == "indexer"]
    told = [build["told"](pod, page) for pod, page in zip(pods, pages, strict=True)]
    return replace(facts, told={**facts.told, "indexer": told})


def without(facts: ClusterFacts, *components: str) -> ClusterFacts:
    kept = [one for one in facts.deployments if one["metadata"]["labels"][COMPONENT_LABEL] not in components]
    return replace(facts, deployments=kept)


def test_an_installation_that_is_well_is_looked_at_by_all_of_them(facts: ClusterFacts) -> None:
    notes = {one.check.id: one.verdict.note for one in run_checks(facts)}
    assert {f"indexer-{name}" for name in CHECKS} <= notes.keys()
    assert (notes["indexer-leads"], notes["indexer-hears"]) == ("1 of 1", "2 of 2 engines")


def test_a_model_that_nobody_reads_fails_and_one_of_two_is_enough(facts: ClusterFacts, builders: Build) -> None:
    idle, leads = (f'{CONNECTED}fairlead_indexer_leads{{model="chat/tiny"}} {number}\n' for number in (0, 1))
    assert said(telling(facts, builders, idle, leads)) == {}
    found = said(telling(facts, builders, idle, idle))
    assert found["indexer-leads"].lines == ("no indexer reads the engines of chat/tiny",)
    assert {name: one.outcome for name, one in found.items()} == {"indexer-leads": CheckOutcome.FAILED}


def test_one_that_was_not_reached_may_be_who_reads(facts: ClusterFacts) -> None:
    first, second = facts.told["indexer"]
    silent = replace(first, metrics=MissingValue("the API server does not reach pod x"))
    found = said(replace(facts, told={**facts.told, "indexer": [silent, second]}))
    assert found["indexer-leads"].outcome is CheckOutcome.UNKNOWN
    assert "does not reach pod x" in found["indexer-leads"].lines[0]


def test_engines_and_a_redis_that_are_not_heard_are_warnings(facts: ClusterFacts, builders: Build) -> None:
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


def test_gateways_with_a_redis_and_no_indexer_are_told_and_those_without_are_not(facts: ClusterFacts) -> None:
    found = said(without(facts, "indexer"))
    assert {name: one.outcome for name, one in found.items()} == {"indexer-installed": CheckOutcome.WARNING}
    assert "has a Redis, and nobody writes the index there" in found["indexer-installed"].lines[0]
    alone = without(facts, "indexer", "redis")
    for one in alone.deployments:
        (container,) = one["spec"]["template"]["spec"]["containers"]
        container["env"] = [each for each in container["env"] if each["name"] != "FAIRLEAD_REDIS_URL"]
    asked = {one.check.id for one in run_checks(alone)} - {"indexer-rights"}  # as they were read
    assert not [name for name in asked if name.startswith("indexer")]


@pytest.mark.parametrize("gone", ["secrets", "rights"])
def test_what_is_taken_from_it_is_named(facts: ClusterFacts, gone: str) -> None:
    if gone == "secrets":
        away = MissingValue('secrets "fairlead-redis" not found', is_absent=True)
        facts = replace(facts, secrets={**facts.secrets, ("fairlead", "fairlead-redis"): away})
    else:
        mine = dict.fromkeys(facts.account_rights["indexer", "fairlead"], False)
        facts = replace(facts, account_rights={**facts.account_rights, ("indexer", "fairlead"): mine})
    assert said(facts)[f"indexer-{gone}"].outcome is CheckOutcome.FAILED

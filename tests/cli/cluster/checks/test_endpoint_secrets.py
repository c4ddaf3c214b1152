"""Secrets that endpoints name: gateways mount each for its model, and it has its entries."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from fairlead.fleet.endpoint_address import ENDPOINT_SECRETS_FOLDER
from fairlead.kube.resources import Manifest
from fairlead_cli.cluster.checks.analyzers.models import check_endpoint_secrets
from fairlead_cli.cluster.checks.check import CheckOutcome
from fairlead_cli.cluster.components import GATEWAY
from fairlead_cli.cluster.facts import ClusterFacts, SecretSummary
from fairlead_cli.cluster.object_fields import MissingValue

Build = Mapping[str, Callable[..., Any]]
COMPLETE = SecretSummary(frozenset({"token", "ca.crt"}))
WHERE = ("fairlead", "provider")


def hosted(build: Build, namespace: str = "chat") -> Manifest:
    found: Manifest = build["model"]()
    found["metadata"] |= {"namespace": namespace, "name": "hosted"}
    endpoint = {
        "url": "https://api.example.com/v1",
        "tokenSecretKeyRef": {"name": "provider", "key": "token"},
        "caSecretKeyRef": {"name": "provider", "key": "ca.crt"},
    }
    found["spec"] |= {"engine": {"type": "OpenAI"}, "pools": [{"endpoints": [endpoint]}]}
    return found


def with_mount(facts: ClusterFacts, namespace: str = "chat") -> ClusterFacts:
    """Returns the facts with a gateway that mounts the Secret for a namespace."""
    deployments = copy.deepcopy(list(facts.component_deployments(GATEWAY)))  # type: ignore[arg-type]
    for deployment in deployments:
        pods = deployment["spec"]["template"]["spec"]
        pods.setdefault("volumes", []).append({"name": "endpoint-x", "secret": {"secretName": "provider"}})
        mount = {"name": "endpoint-x", "mountPath": f"{ENDPOINT_SECRETS_FOLDER}/{namespace}/provider"}
        pods["containers"][0].setdefault("volumeMounts", []).append(mount)
    return replace(facts, deployments=deployments)


def test_models_without_such_secrets_are_no_matter(facts: ClusterFacts) -> None:
    assert check_endpoint_secrets(facts) is None


@pytest.mark.parametrize(
    ("secret", "outcome", "line"),
    [
        (COMPLETE, CheckOutcome.OK, None),
        (
            SecretSummary(frozenset({"ca.crt"})),
            CheckOutcome.FAILED,
            "chat/hosted: the Secret fairlead/provider has no entry token",
        ),
        (
            MissingValue("not found", is_absent=True),
            CheckOutcome.FAILED,
            "chat/hosted: there is no Secret fairlead/provider",
        ),
        (MissingValue("you may not", is_forbidden=True), CheckOutcome.UNKNOWN, "you may not"),
    ],
)
def test_mounted_secret_has_the_entries(
    facts: ClusterFacts,
    builders: Build,
    secret: SecretSummary | MissingValue,
    outcome: CheckOutcome,
    line: str | None,
) -> None:
    found = replace(with_mount(facts), models=[hosted(builders)], secrets={**facts.secrets, WHERE: secret})
    verdict = check_endpoint_secrets(found)
    assert verdict is not None
    assert (verdict.outcome, verdict.lines) == (outcome, () if line is None else (line,))


def test_secret_of_another_namespace_does_not_count(facts: ClusterFacts, builders: Build) -> None:
    found = replace(with_mount(facts, "search"), models=[hosted(builders)], secrets={WHERE: COMPLETE})
    verdict = check_endpoint_secrets(found)
    assert verdict is not None
    assert verdict.outcome is CheckOutcome.FAILED
    assert verdict.lines == (
        "chat/hosted: fairlead/fairlead-gateway does not mount the Secret provider for models of the namespace chat",
    )


def test_unreadable_gateways_leave_it_open(facts: ClusterFacts, builders: Build) -> None:
    found = replace(facts, models=[hosted(builders)], deployments=MissingValue("connection refused"))
    verdict = check_endpoint_secrets(found)
    assert verdict is not None
    assert verdict.outcome is CheckOutcome.UNKNOWN

"""Missing Secrets, claims and classes of models are all reported, before a pod waits for them."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Forbidden, NotFound
from fairlead.kube.resources import SECRETS, Manifest, Resource
from fairlead_cli.cluster.checks.analyzers.models import check_references
from fairlead_cli.cluster.checks.check import CheckOutcome
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.facts_collector import collect_references

Build = Mapping[str, Callable[..., Any]]


class Objects:
    """An API server with some objects; Secrets of the namespace `shut` may not be read."""

    def __init__(self, *objects: Manifest) -> None:
        self._objects = {(one["kind"], one["metadata"]["name"]): one for one in objects}

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest:
        if namespace == "shut" and resource == SECRETS:
            raise Forbidden("you may not get secrets in shut", status=403)
        if (resource.kind, name) not in self._objects:
            raise NotFound("not found", status=404)
        return self._objects[resource.kind, name]


def named(kind: str, name: str, **fields: Any) -> Manifest:
    return {"kind": kind, "metadata": {"name": name}, **fields}


def model(build: Build, namespace: str = "chat") -> Manifest:
    found: Manifest = build["model"]()
    found["metadata"]["namespace"] = namespace
    token = {"secretKeyRef": {"name": "engine", "key": "token"}}
    maybe = {"secretKeyRef": {"name": "maybe", "key": "x", "optional": True}}
    volumes = [
        {"name": "tls", "secret": {"secretName": "tls"}},
        {"name": "d", "persistentVolumeClaim": {"claimName": "data"}},
    ]
    found["spec"] = {
        "model": {"uri": "hf://a/b", "credentials": {"secretRef": {"name": "hf"}}, "cache": {"claimName": "weights"}},
        "engine": {
            "type": "VLLM",
            "imagePullSecrets": [{"name": "registry"}],
            "env": [{"name": "A", "valueFrom": token}, {"name": "B", "valueFrom": maybe}],
        },
        "pools": [{"name": "main", "acceleratorClassName": "l40s", "template": {"spec": {"volumes": volumes}}}],
    }
    return found


def checked(facts: ClusterFacts, one: Manifest, *objects: Manifest) -> tuple[CheckOutcome, tuple[str, ...]]:
    references = asyncio.run(collect_references(cast(KubeApi, Objects(*objects)), [one]))
    verdict = check_references(replace(facts, models=[one], references=references))
    assert verdict is not None
    return verdict.outcome, verdict.lines


def test_all_that_is_missing_is_listed_at_once(facts: ClusterFacts, builders: Build) -> None:
    outcome, lines = checked(facts, model(builders), named("Secret", "engine", data={"other": ""}))
    assert outcome is CheckOutcome.FAILED
    assert lines == (
        "chat/tiny: there is no AcceleratorClass l40s",
        "chat/tiny: there is no Secret chat/hf",
        "chat/tiny: there is no PersistentVolumeClaim chat/weights",
        "chat/tiny: there is no Secret chat/registry",
        "chat/tiny: there is no Secret chat/engine with the entry token",
        "chat/tiny: there is no Secret chat/tls",
        "chat/tiny: there is no PersistentVolumeClaim chat/data",
    )


def test_model_with_all_that_it_names_passes(facts: ClusterFacts, builders: Build) -> None:
    objects = [named("Secret", name, data={"token": ""}) for name in ("hf", "registry", "engine", "tls")]
    objects += [named("PersistentVolumeClaim", name) for name in ("weights", "data")]
    facts = replace(facts, accelerator_classes=[named("AcceleratorClass", "l40s")])
    assert checked(facts, model(builders), *objects) == (CheckOutcome.OK, ())


def test_secret_that_may_not_be_read_is_not_called_missing(facts: ClusterFacts, builders: Build) -> None:
    facts = replace(facts, accelerator_classes=[named("AcceleratorClass", "l40s")])
    claims = [named("PersistentVolumeClaim", name) for name in ("weights", "data")]
    outcome, lines = checked(facts, model(builders, "shut"), *claims)
    assert outcome is CheckOutcome.UNKNOWN
    assert lines == ("you may not get secrets in shut",)


def test_mounted_claim_of_a_source_is_looked_up(facts: ClusterFacts, builders: Build) -> None:
    one: Manifest = builders["model"]()
    one["spec"]["model"] = {"uri": "pvc:models/qwen"}
    assert checked(facts, one) == (CheckOutcome.FAILED, ("chat/tiny: there is no PersistentVolumeClaim chat/models",))

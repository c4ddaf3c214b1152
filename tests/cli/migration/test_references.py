"""Every reference of a pod holds after a conversion, or a note names it."""

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.errors import BadInput
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import KubeError
from fairlead.kube.resources import NAMESPACES, Manifest
from fairlead.manifests.loader import read_object
from fairlead.manifests.pod_rules import selects
from fairlead.runtime.clock import SystemClock
from fairlead_cli.manifest_conversion import Migration, migrate
from fairlead_cli.migration.drafts import MigrationOptions, PoolDraft
from fairlead_cli.migration.field_reader import FieldReader
from fairlead_cli.migration.references import OWN_VOLUMES, hub_folder, move_cache, rename_taken
from fairlead_cli.rendered_pods import lint_pods, pod_templates, render
from fairlead_testing.cli.foreign_manifests import LABELS, SYSTEMS
from fairlead_testing.kube.api_server import ApiServer

EXAMPLES = 60
CLASSES = builtin_accelerators()
SOURCE_LABELS = {**LABELS, "model": "chat"}


def conversions(system: str, examples: int = EXAMPLES) -> Iterator[tuple[int, list[dict[str, Any]], Migration]]:
    """Yields seed, source and conversion of random documents, without refused ones."""
    for seed in range(examples):
        documents = SYSTEMS[system](Random(f"{system} {seed}"))
        try:
            yield (
                seed,
                documents,
                migrate([("f.yaml", one) for one in documents], MigrationOptions(accelerator="nvidia-l4")),
            )
        except BadInput:
            continue


def models(migration: Migration) -> list[ModelDeployment]:
    found = [read_object(manifest) for manifest in migration.manifests]
    return [one for one in found if isinstance(one, ModelDeployment)]


def workloads(model: ModelDeployment) -> list[Manifest]:
    rendered = render(model, CLASSES)
    assert rendered.problems == ()
    return [one for one in rendered.manifests if one["kind"] in ("Deployment", "LeaderWorkerSet")]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


@pytest.mark.parametrize("system", SYSTEMS)
def test_random_workloads_are_converted_into_pods_that_a_server_takes(system: str) -> None:
    converted = 0
    for seed, _, migration in conversions(system):
        for model in models(migration):
            assert not [note for note in lint_pods(model, CLASSES) if note.is_problem], seed
            for template in [one for workload in workloads(model) for one in pod_templates(workload)]:
                volumes = {volume["name"] for volume in template["spec"]["volumes"]}
                for container in containers(template["spec"]):
                    assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes, seed
                    rights = container.get("securityContext", {})
                    assert not (rights.get("privileged") and rights.get("allowPrivilegeEscalation") is False), seed
                names = [container["name"] for container in containers(template["spec"])]
                assert len(set(names)) == len(names), seed
        converted += 1
    assert converted >= EXAMPLES // 3


def selectors(pod: dict[str, Any]) -> list[dict[str, Any]]:
    rules = [rule for name, rule in pod.get("affinity", {}).items() if name.startswith("pod")]
    terms = [term for rule in rules for term in rule["requiredDuringSchedulingIgnoredDuringExecution"]]
    return [one["labelSelector"] for one in (*terms, *pod.get("topologySpreadConstraints", []))]


@pytest.mark.parametrize("system", ["workloads", "aibrix", "production-stack"])
def test_selectors_of_the_old_pods_select_the_new_ones_or_are_noted(system: str) -> None:
    checked = 0
    for seed, documents, migration in conversions(system):
        text = str(documents)
        for template in [
            one for model in models(migration) for work in workloads(model) for one in pod_templates(work)
        ]:
            for selector in selectors(template["spec"]):
                is_own = selects(selector, template["metadata"]["labels"])
                assert is_own or not selects(selector, SOURCE_LABELS), seed
                checked += 1
        if "another" in text and "podAntiAffinity" in text:
            assert any("it selects other pods" in note.reason for note in migration.notes), seed
    assert checked > EXAMPLES // 4


@pytest.mark.parametrize("system", SYSTEMS)
def test_volumes_of_the_source_take_no_name_of_our_own(system: str) -> None:
    """A volume of the source with the name of one of ours would replace it."""
    for seed, _, migration in conversions(system):
        for model in models(migration):
            for pool in model.spec.pools:
                volumes = [] if pool.template is None else pool.template.spec.get("volumes", [])
                taken = [one for one in volumes if one["name"] in OWN_VOLUMES and one["name"] != "shared-memory"]
                assert taken == [], seed


@pytest.mark.api_server
@pytest.mark.parametrize("system", SYSTEMS)
async def test_what_an_api_server_refuses_lint_had_said(system: str, api_server: ApiServer) -> None:
    refused: list[str] = []
    async with KubeApi(api_server.config(), SystemClock(), lambda: 0.5) as api:
        namespace = {"apiVersion": "v1", "kind": NAMESPACES.kind, "metadata": {"name": "default"}}
        await api.apply(namespace, "test")
        for seed, _, migration in conversions(system):
            for model in models(migration):
                is_noted = any(note.is_problem for note in lint_pods(model, CLASSES))
                for workload in workloads(model):
                    if workload["kind"] == "LeaderWorkerSet":  # this server does not have its definition
                        template = workload["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
                        workload = deployment_of(workload, template)
                    try:
                        await api.apply(workload, "test", dry_run=True)
                    except KubeError as error:
                        refused += [] if is_noted else [f"{seed}: {error}"]
    assert refused == []


def deployment_of(workload: Manifest, template: dict[str, Any]) -> Manifest:
    selector = {"matchLabels": {"fairlead.io/model": template["metadata"]["labels"]["fairlead.io/model"]}}
    metadata = {"name": workload["metadata"]["name"], "namespace": "default"}
    spec = {"selector": selector, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "/root/.cache/huggingface/hub"),
        ({"HOME": "/home/me"}, "/home/me/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HF_HOME": "~/hf"}, "/root/hf/hub"),
        ({"HF_HOME": "/hf", "HF_HUB_CACHE": "/hub/"}, "/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
    ],
)
def test_folder_of_downloads_is_that_of_the_library(variables: dict[str, str], folder: str) -> None:
    assert hub_folder(variables) == folder


@pytest.mark.parametrize(
    ("place", "sub_path", "source", "cache", "hub"),
    [
        ("/root/.cache/huggingface", None, "claim", True, "/var/cache/fairlead/hub"),
        ("/root/.cache", None, "claim", True, None),
        ("/root/.cache/huggingface/hub", None, "claim", True, "/var/cache/fairlead"),
        ("/root/.cache/huggingface", "a/b", "claim", True, "/var/cache/fairlead/a/b/hub"),
        ("/root/.cache/huggingface", None, "host", False, "/var/cache/fairlead/hub"),
        ("/data", None, "claim", False, None),
    ],
)
def test_claim_at_the_usual_place_of_the_cache_stays_the_cache(
    place: str, sub_path: str | None, source: str, cache: bool, hub: str | None
) -> None:
    (document, *_) = SYSTEMS["workloads"](Random(0))
    volume = {"persistentVolumeClaim": {"claimName": "disk"}} if source == "claim" else {"hostPath": {"path": "/m"}}
    container = {
        "name": "vllm",
        "image": "vllm/vllm-openai:v0.32.0",
        "command": ["vllm", "serve", "a/b"],
        "volumeMounts": [{"name": "v", "mountPath": place} | ({"subPath": sub_path} if sub_path else {})],
    }
    pod = {"containers": [container], "volumes": [{"name": "v", **volume}]}
    document = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "x"},
        "spec": {"template": {"spec": pod}},
    }
    migration = migrate([("f.yaml", document)], MigrationOptions(accelerator="nvidia-l4"))
    (model,) = models(migration)
    assert (model.spec.model.cache is not None and model.spec.model.cache.claim_name == "disk") == cache
    assert next((one.value for one in model.spec.engine.env if one.name == "HF_HUB_CACHE"), None) == hub
    assert any("user 65532 must write there" in note.reason for note in migration.notes) == (place != "/data")
    if hub and not cache:
        (template,) = pod_templates(workloads(model)[0])
        (mount,) = [one for one in template["spec"]["containers"][0]["volumeMounts"] if one["name"] == "v"]
        assert mount["mountPath"] == "/var/cache/fairlead"


@pytest.mark.parametrize("references", [2, 1_000])
def test_variables_that_grow_by_each_other_are_read_in_a_moment(references: int) -> None:
    chain = [{"name": f"V{number + 1}", "value": f"$(V{number})" * references} for number in range(60)]
    env = [{"name": "V0", "value": "/data/"}, *chain, {"name": "HF_HOME", "value": "$(V60)"}]
    pool = PoolDraft(FieldReader.of_document({}, "f.yaml"))
    pool.engine.env = env
    pool.container = {"volumeMounts": [{"name": "cache", "mountPath": "/root/.cache"}]}
    assert move_cache(pool) == {}


def test_renamed_volumes_and_containers_keep_names_of_their_own() -> None:
    pool = PoolDraft(FieldReader.of_document({}, "f.yaml"))
    pool.pod = {
        "volumes": [{"name": name} for name in ("model", "old-model", "mine")],
        "initContainers": [{"name": name} for name in ("engine", "old-engine", "old-old-engine")],
    }
    pool.container = {"volumeMounts": [{"name": "model"}, {"name": "old-model"}]}
    rename_taken(pool, pool.reader)
    assert [one["name"] for one in pool.pod["volumes"]] == ["old-old-model", "old-model", "mine"]
    assert [one["name"] for one in pool.container["volumeMounts"]] == ["old-old-model", "old-model"]
    names = [one["name"] for one in pool.pod["initContainers"]]
    assert names == ["old-old-old-engine", "old-engine", "old-old-engine"]

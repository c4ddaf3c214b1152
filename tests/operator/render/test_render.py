"""Rendering with facts of the cluster: pins, stable names, and messages about failures."""

import re
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead.api.conditions import Reason
from fairlead.api.spec.accelerator_class import AcceleratorClassSpec
from fairlead.api.spec.engine import EngineType
from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.fleet.labels import PodEngineInfo, parse_engine_info
from fairlead.kube.resources import Manifest
from fairlead_operator.render import (
    CURRENT_VERSION,
    ExistingWorkload,
    InstallationDefaults,
    RenderContext,
    RenderPin,
    RenderProblem,
    existing_workload,
    parse_pin,
    pool_revision,
    render_model,
    template_versions,
)
from fairlead_testing.kube.render_cases import default_context, read_case

CASES = Path(__file__).parent / "cases"
_POOL: dict[str, Any] = {"acceleratorClassName": "nvidia-l4"}


def model_of(**spec: Any) -> ModelDeployment:
    content = {"model": {"uri": "hf://Qwen/Qwen3-8B"}, "pools": [{"acceleratorClassName": "nvidia-l4"}], **spec}
    metadata = {"name": "qwen", "namespace": "chat", "uid": "u1"}
    return ModelDeployment.model_validate(
        {"apiVersion": "serving.fairlead.io/v1alpha1", "kind": "ModelDeployment", "metadata": metadata, "spec": content}
    )


def workload(model: ModelDeployment, facts: RenderContext | None = None) -> Manifest:
    rendered = render_model(model, {}, facts or default_context())
    assert rendered.problems == ()
    (manifest,) = (manifest for manifest in rendered.manifests if manifest["kind"] in ("Deployment", "LeaderWorkerSet"))
    return manifest


def pod_of(manifest: Manifest) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return spec


def only_problem(model: ModelDeployment, facts: RenderContext | None = None) -> RenderProblem:
    rendered = render_model(model, {}, facts or default_context())
    assert rendered.manifests == ()
    (problem,) = rendered.problems
    assert problem.pool == "main"
    return problem


def newer_installation() -> InstallationDefaults:
    images = {EngineType.VLLM: "vllm/vllm-openai:v0.33.0"}
    return replace(default_context().installation, images=images, pull_secrets=("other",))


def test_same_input_gives_the_same_manifests() -> None:
    for case in sorted(CASES.glob("*.yaml")):
        model, classes = read_case(case)
        assert render_model(model, classes, default_context()) == render_model(model, classes, default_context())


def test_installation_upgrade_changes_no_pod() -> None:
    before = workload(model_of())
    children = {"main": existing_workload(before)}
    after = workload(model_of(), default_context(installation=newer_installation(), workloads=children))
    assert after == before


def test_unrelated_change_after_upgrade_changes_no_pod() -> None:
    before = workload(model_of())
    children = {"main": existing_workload({**before, "status": {"observedGeneration": 1}})}
    changed = model_of(
        pools=[{"acceleratorClassName": "nvidia-l4", "minReplicas": 3, "maxReplicas": 9}],
        slo={"ttft": "800ms"},
        routing={"preset": "session"},
        rollout={"maxSurge": 2, "paused": True},
    )
    after = workload(changed, default_context(installation=newer_installation(), workloads=children))
    assert after["spec"]["template"] == before["spec"]["template"]
    assert (after["spec"]["replicas"], after["spec"]["paused"]) == (3, True)


def test_better_accelerator_profile_restarts_no_real_engine() -> None:
    def revision(kind: str, **spec: Any) -> str:
        accelerator = AcceleratorClassSpec.model_validate({"resource": "nvidia.com/gpu", **spec})
        model = model_of(engine={"type": kind})
        return pool_revision(model, model.spec.pools[0], accelerator)

    before, after = {"profile": {"preset": "910b4"}}, {"profile": {"preset": "l4-qwen8b"}, "costPerHour": "2.50"}
    assert revision("VLLM", **before) == revision("VLLM", **after)
    assert revision("Sim", **before) != revision("Sim", **after)
    assert revision("VLLM", **before) != revision("VLLM", **before, nodeSelector={"zone": "a"})


def test_request_policy_of_a_model_restarts_no_engine() -> None:
    policy = {"unknownFields": "Refuse", "allowedFields": ["priority"], "allowedPaths": ["/v1/files"]}
    accelerator = AcceleratorClassSpec.model_validate({"resource": "nvidia.com/gpu", "profile": {"preset": "910b4"}})
    before, after = (model_of(engine={"type": "VLLM", **more}) for more in ({}, policy))
    assert pool_revision(before, before.spec.pools[0], accelerator) == pool_revision(
        after, after.spec.pools[0], accelerator
    )


def arguments_of(manifest: Manifest) -> list[str]:
    arguments: list[str] = pod_of(manifest)["containers"][0]["args"]
    return arguments


@pytest.mark.parametrize("kind", ["VLLM", "SGLang", "Sim", "Custom", "LlamaCpp", "TRTLLM"])
def test_arguments_of_a_pool_come_last_and_are_its_own(kind: str) -> None:
    image = {"image": "a/b:1"} if kind in ("Custom", "LlamaCpp", "TRTLLM") else {}
    engine = {"type": kind, "args": ["--a=1"], **image}
    pools = [_POOL | {"name": "small", "args": ["--b=2"]}, _POOL | {"name": "large"}]
    rendered = render_model(model_of(engine=engine, pools=pools), {}, default_context())
    assert rendered.problems == ()
    small, large = (arguments_of(manifest) for manifest in rendered.manifests if manifest["kind"] == "Deployment")
    assert (small[-2:], large[-1]) == (["--a=1", "--b=2"], "--a=1")


def test_arguments_of_both_pods_of_a_group_are_those_of_the_pool() -> None:
    pool = _POOL | {"parallelism": {"tensor": 2, "nodes": 2}, "args": ["--b=2"]}
    group = workload(model_of(pools=[pool]), replace(default_context(), leader_worker_sets=True))
    template = group["spec"]["leaderWorkerTemplate"]
    for name in ("leaderTemplate", "workerTemplate"):
        assert "--b=2" in template[name]["spec"]["containers"][0]["args"]


def test_new_arguments_of_a_pool_restart_that_pool_alone() -> None:
    accelerator = AcceleratorClassSpec.model_validate({"resource": "nvidia.com/gpu", "profile": {"preset": "910b4"}})
    pools = [_POOL | {"name": "small"}, _POOL | {"name": "large"}]
    before, after = model_of(pools=pools), model_of(pools=[pools[0] | {"args": ["--b=2"]}, pools[1]])
    small, large = (
        [pool_revision(model, model.spec.pools[place], accelerator) for model in (before, after)] for place in (0, 1)
    )
    assert (len(set(small)), len(set(large))) == (2, 1)


def media_switch(**engine: Any) -> list[str]:
    """The arguments from the switch of media domains to the next switch."""
    arguments = arguments_of(workload(model_of(engine=engine)))
    if "--allowed-media-domains" not in arguments:
        return []
    begin = arguments.index("--allowed-media-domains")
    return list(takewhile(lambda argument: not argument.startswith("-"), arguments[begin + 1 :]))


@pytest.mark.parametrize("kind", ["VLLM", "SGLang"])
def test_requests_cannot_make_an_engine_fetch_urls_by_default(kind: str) -> None:
    # An empty list would allow every host, so the default names one that never resolves.
    assert media_switch(type=kind) == ["media.invalid"]
    assert media_switch(type=kind, allowedMediaDomains=["a.example", "b.example"]) == ["a.example", "b.example"]
    assert media_switch(type=kind, allowedMediaDomains=["*"]) == []


def test_allowed_hosts_cannot_redirect_an_engine_elsewhere() -> None:
    variables = pod_of(workload(model_of()))["containers"][0]["env"]
    assert {"name": "VLLM_MEDIA_URL_ALLOW_REDIRECTS", "value": "0"} in variables
    opened = model_of(engine={"env": [{"name": "VLLM_MEDIA_URL_ALLOW_REDIRECTS", "value": "1"}]})
    flags = [entry for entry in pod_of(workload(opened))["containers"][0]["env"] if "REDIRECTS" in entry["name"]]
    assert [entry["value"] for entry in flags] == ["1"]


def test_engines_with_a_known_hash_seed_use_a_hash_without_known_collisions() -> None:
    peers = {"bytesPerToken": 147456, "bandwidth": "10Gi"}
    shared = model_of(kvCache={"offload": {"memory": "64Gi", "peers": peers}})
    assert "--prefix-caching-hash-algo=sha256" in arguments_of(workload(shared))
    assert not any("hash-algo" in argument for argument in arguments_of(workload(model_of())))


def test_engines_keep_the_render_version_that_made_them_until_their_spec_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next release has one version more. Upgrade and rollback restart no engine."""
    created = workload(model_of())
    release = dict(template_versions.RENDERERS)
    following = CURRENT_VERSION + 1

    def next_version(*given: Any) -> Manifest:
        template = release[CURRENT_VERSION](*given)
        template["spec"]["containers"][0]["args"].append("--switch-of-the-next-release")
        return template

    monkeypatch.setattr(template_versions, "RENDERERS", {**release, following: next_version})
    monkeypatch.setattr("fairlead_operator.render.model.CURRENT_VERSION", following)
    upgraded = default_context(workloads={"main": existing_workload(created)})
    assert workload(model_of(), upgraded) == created
    assert "--switch-of-the-next-release" in arguments_of(workload(model_of()))
    changed = model_of(engine={"args": ["--max-model-len=4096"]})
    after = workload(changed, upgraded)
    assert "--switch-of-the-next-release" in arguments_of(after)
    assert workload(changed, default_context(workloads={"main": existing_workload(after)})) == after

    monkeypatch.undo()
    rolled_back = default_context(workloads={"main": existing_workload(created)})
    assert workload(model_of(), rolled_back) == created


def test_pods_keep_their_user_until_their_spec_changes() -> None:
    """A cluster that begins to assign users, or stops, restarts no engine."""
    named, assigned = workload(model_of()), workload(model_of(), default_context(assigns_users=True))
    for created, later in ((named, True), (assigned, False)):
        context = default_context(assigns_users=later, workloads={"main": existing_workload(created)})
        assert workload(model_of(), context) == created
        changed = model_of(engine={"args": ["--max-model-len=4096"]})
        assert ("runAsUser" in pod_of(workload(changed, context))["securityContext"]) != later


def test_further_served_names_restart_no_engine() -> None:
    first, second, other = (
        workload(model_of(model={"uri": "hf://Qwen/Qwen3-8B", "servedNames": names}))
        for names in (["a"], ["a", "b"], ["b"])
    )
    assert first == second
    assert first != other


def test_spec_change_takes_current_installation_values() -> None:
    children = {"main": existing_workload(workload(model_of()))}
    changed = model_of(engine={"args": ["--max-model-len=4096"]})
    after = workload(changed, default_context(installation=newer_installation(), workloads=children))
    assert pod_of(after)["containers"][0]["image"] == "vllm/vllm-openai:v0.33.0"
    assert pod_of(after)["imagePullSecrets"] == [{"name": "other"}]


def test_unsupported_version_is_replaced_by_the_current() -> None:
    pin = existing_workload(workload(model_of())).pin
    assert pin is not None
    old = ExistingWorkload("qwen-main", RenderPin(pin.revision, 0, "old:1"))
    parsed = parse_pin(workload(model_of(), default_context(workloads={"main": old}))["metadata"]["annotations"])
    assert parsed is not None
    assert parsed.version == CURRENT_VERSION


@pytest.mark.parametrize(
    "annotations",
    [
        {},
        {"fairlead.io/revision": "a"},
        {"fairlead.io/revision": "a", "fairlead.io/render": "no JSON"},
        {"fairlead.io/revision": "a", "fairlead.io/render": "[]"},
        {"fairlead.io/revision": "a", "fairlead.io/render": '{"version": "1"}'},
        {"fairlead.io/revision": "a", "fairlead.io/render": '{"version": 1, "image": 3}'},
        {"fairlead.io/revision": "a", "fairlead.io/render": '{"version": 1, "pullSecrets": [3]}'},
        {"fairlead.io/revision": "a", "fairlead.io/render": '{"version": 1, "downloaderImage": 3}'},
        {"fairlead.io/render": '{"version": 1}'},
    ],
)
def test_edited_pin_counts_as_missing(annotations: dict[str, str]) -> None:
    assert parse_pin(annotations) is None


def test_pin_parses_back() -> None:
    pins = (
        RenderPin("a1", 1),
        RenderPin("a1", 2, "image:1", ("x", "y")),
        RenderPin("a1", 1, ipv6=True),
        RenderPin("a1", 2, "image:1", downloader_image="operator:1"),
    )
    for pin in pins:
        assert parse_pin(pin.annotations()) == pin


def test_paused_rollout_holds_existing_pods_not_new_ones() -> None:
    paused = model_of(rollout={"paused": True})
    assert workload(paused)["spec"]["paused"] is False
    assert (
        workload(paused, default_context(workloads={"main": ExistingWorkload("qwen-main")}))["spec"]["paused"] is True
    )
    unseen = {**workload(model_of()), "status": {}}
    seen = {**unseen, "status": {"observedGeneration": 1}}
    for there, held in (
        (unseen, False),
        (seen, True),
    ):  # a Deployment that is paused at once never makes its first pods
        facts = default_context(workloads={"main": existing_workload(there)})
        assert workload(paused, facts)["spec"]["paused"] is held
    pools = [{"acceleratorClassName": "nvidia-l4", "parallelism": {"tensor": 2, "nodes": 2}}]
    group = model_of(rollout={"paused": True}, pools=pools)
    there = workload(group, default_context(workloads={"main": ExistingWorkload("qwen-main")}))
    rolling = there["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]
    assert rolling["partition"] == 4096
    assert workload(group)["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]["partition"] == 0


def test_child_keeps_its_name() -> None:
    facts = default_context(workloads={"main": ExistingWorkload("qwen-main-abcdef")}, foreign_names=frozenset())
    assert {manifest["metadata"]["name"] for manifest in render_model(model_of(), {}, facts).manifests} == {
        "qwen-main-abcdef"
    }


def test_name_of_another_model_is_avoided() -> None:
    (name,) = {
        manifest["metadata"]["name"]
        for manifest in render_model(model_of(), {}, default_context(foreign_names=frozenset({"qwen-main"}))).manifests
    }
    assert name.startswith("qwen-main-")


def test_no_policy_is_written_without_peers() -> None:
    installation = replace(default_context().installation, peers=None)
    rendered = render_model(model_of(), {}, default_context(installation=installation))
    kinds = [manifest["kind"] for manifest in rendered.manifests]
    assert kinds == ["ServiceAccount", "Service", "PodDisruptionBudget", "Deployment"]


def test_engines_listen_on_the_pod_address_family() -> None:
    assert "--host=::" in pod_of(workload(model_of(), default_context(ipv6=True)))["containers"][0]["args"]
    sim = workload(model_of(engine={"type": "Sim"}), default_context(ipv6=True))
    assert "--listen=[::]:8000" in pod_of(sim)["containers"][0]["args"]


def test_address_family_is_pinned_across_operator_restarts() -> None:
    for before, after in ((False, True), (True, False)):
        created = workload(model_of(), default_context(ipv6=before))
        children = {"main": existing_workload(created)}
        assert workload(model_of(), default_context(ipv6=after, workloads=children)) == created


def test_model_variables_replace_ours() -> None:
    manifest = workload(model_of(engine={"env": [{"name": "HOME", "value": "/else"}, {"name": "EMPTY"}]}))
    env = {variable["name"]: variable.get("value") for variable in pod_of(manifest)["containers"][0]["env"]}
    assert (env["HOME"], env["EMPTY"]) == ("/else", None)


def test_unknown_accelerator_is_named_with_similar_ones() -> None:
    problem = only_problem(model_of(pools=[{"acceleratorClassName": "nvidia-l5"}]))
    assert problem.reason is Reason.UNKNOWN_ACCELERATOR
    assert "nvidia-l4" in problem.fix


def test_multi_node_needs_leader_worker_sets() -> None:
    pools = [{"acceleratorClassName": "nvidia-l4", "parallelism": {"tensor": 2, "nodes": 2}}]
    problem = only_problem(model_of(pools=pools), default_context(leader_worker_sets=False))
    assert problem.reason is Reason.LEADER_WORKER_SET_MISSING


def test_missing_installation_image_is_a_problem() -> None:
    problem = only_problem(model_of(), default_context(installation=InstallationDefaults(images={})))
    assert (problem.reason, problem.field) == (Reason.INVALID_SPEC, "spec.engine.image")


def test_downloader_without_an_image_is_a_problem() -> None:
    installation = replace(default_context().installation, downloader_image=None)
    problem = only_problem(model_of(adapters={"download": {}}), default_context(installation=installation))
    assert (problem.reason, problem.field) == (Reason.INVALID_SPEC, "spec.adapters.download")


def test_new_downloader_image_restarts_no_engine_until_the_spec_changes() -> None:
    model = model_of(adapters={"download": {}})
    before = workload(model)
    children = {"main": existing_workload(before)}
    newer = replace(default_context().installation, downloader_image="operator:2")
    after = workload(model, default_context(installation=newer, workloads=children))
    assert pod_of(after) == pod_of(before)
    changed = model_of(adapters={"download": {"size": "1Gi"}})
    (sidecar,) = pod_of(workload(changed, default_context(installation=newer, workloads=children)))["initContainers"]
    assert sidecar["image"] == "operator:2"
    assert f"--max-bytes={int(2**30 * 0.95)}" in sidecar["args"]


LIMITS = {"cpu": "1", "memory": "512Mi"}


@pytest.mark.parametrize(
    ("own", "changed"),
    [
        ([], {}),
        ([{"name": "warm-up", "image": "x"}], {}),
        ([{"name": "warm-up", "image": "x", "securityContext": {"runAsUser": 0}, "env": []}], {}),
        (
            [{"name": "adapter-downloader", "resources": {"limits": LIMITS}}],
            {"resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": LIMITS}},
        ),
        (
            [{"name": "warm-up", "image": "x"}, {"name": "adapter-downloader", "imagePullPolicy": "Always"}],
            {"imagePullPolicy": "Always"},
        ),
        (
            [{"name": "adapter-downloader", "livenessProbe": None}, {"name": "warm-up", "image": "x"}],
            {"livenessProbe": None},
        ),
    ],
)
def test_template_of_a_pool_merges_into_the_downloader(own: list[dict[str, Any]], changed: dict[str, Any]) -> None:
    (plain,) = pod_of(workload(model_of(adapters={"download": {}})))["initContainers"]
    pools = [{"acceleratorClassName": "nvidia-l4", "template": {"spec": {"initContainers": own}}}]
    first, *others = pod_of(workload(model_of(adapters={"download": {}}, pools=pools)))["initContainers"]
    assert first == {name: value for name, value in (plain | changed).items() if value is not None}
    pools[0]["template"] = {"spec": {"initContainers": [item for item in own if item["name"] != "adapter-downloader"]}}
    assert others == pod_of(workload(model_of(pools=pools))).get("initContainers", [])


def test_instances_of_several_nodes_have_no_downloader() -> None:
    pools = [{"acceleratorClassName": "nvidia-l4", "parallelism": {"tensor": 2, "nodes": 2}}]
    rendered = render_model(model_of(pools=pools, adapters={"download": {}}), {}, default_context())
    assert rendered.problems == ()
    assert "adapter-downloader" not in str(rendered.manifests)


def test_weights_of_the_pages_are_mounted_where_the_engine_reads_them() -> None:
    page = Path(__file__).parents[3] / "docs" / "how-to" / "weights.md"
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    manifests = [manifest for block in blocks for manifest in yaml.safe_load_all(block)]
    namespace = {"namespace": "chat", "uid": "u1"}
    models = [
        ModelDeployment.model_validate(found | {"metadata": found["metadata"] | namespace})
        for found in manifests
        if found["kind"] == "ModelDeployment"
    ]
    checked = [model for model in models if model.spec.model.uri.startswith(("file://", "pvc:"))]
    assert {model.metadata.name for model in checked} >= {"llama-3.1-8b-local", "llama-3.1-8b-nodes"}
    for model in checked:
        pod = pod_of(workload(model))
        (engine,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in engine["volumeMounts"]}
        (path,) = (word for word in engine["args"] if word.endswith("/llama-3.1-8b"))
        (volume,) = (name for folder, name in mounts.items() if Path(path).is_relative_to(folder))
        (source,) = (found for found in pod["volumes"] if found["name"] == volume)
        assert source.keys() & {"hostPath", "persistentVolumeClaim"}, model.metadata.name


def test_unmergeable_template_is_named_with_its_pool() -> None:
    pools = [{"acceleratorClassName": "nvidia-l4", "template": {"spec": {"containers": [{"image": "x"}]}}}]
    problem = only_problem(model_of(pools=pools))
    assert problem.reason is Reason.INVALID_TEMPLATE
    assert problem.message_with_fix.startswith("spec.pools[main].template.spec.containers[0]: has no name")


def test_oversized_object_is_not_written() -> None:
    problem = only_problem(
        model_of(
            engine={"env": [{"name": f"V{n}", "value": "x" * 4096} for n in range(128)], "args": ["y" * 4096] * 128}
        )
    )
    assert problem.reason is Reason.TOO_LARGE


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"model": {"uri": "s3://b/m", "cache": {"size": "1Gi"}}}, "spec.model.cache"),
        ({"model": {"uri": "oci://r/m:1", "cache": {"size": "1Gi"}}}, "spec.model.cache"),
        (
            {
                "engine": {"type": "SGLang"},
                "pools": [{"acceleratorClassName": "nvidia-l4", "parallelism": {"data": 2, "nodes": 2}}],
            },
            "spec.pools[main].parallelism",
        ),
        (
            {
                "engine": {"type": "SGLang"},
                "kvCache": {"offload": {"memory": "512Mi"}},
            },
            "spec.kvCache.offload.memory",
        ),
        (
            {
                "engine": {"type": "Sim"},
                "pools": [{"acceleratorClassName": "cpu", "parallelism": {"data": 2, "nodes": 2}}],
            },
            "spec.pools[main].parallelism.data",
        ),
    ],
)
def test_unsupported_engine_feature_is_a_problem(spec: dict[str, Any], field: str) -> None:
    problem = only_problem(model_of(**spec))
    assert (problem.reason, problem.field) == (Reason.INVALID_SPEC, field)


def test_broken_pool_does_not_stop_other_pools() -> None:
    pools = [{"name": "good", "acceleratorClassName": "nvidia-l4"}, {"name": "bad", "acceleratorClassName": "none"}]
    rendered = render_model(model_of(pools=pools), {}, default_context())
    assert [problem.pool for problem in rendered.problems] == ["bad"]
    assert {manifest["metadata"]["labels"]["fairlead.io/pool"] for manifest in rendered.manifests} == {"good"}


def test_engine_annotations_parse_back_and_survive_edits() -> None:
    notes = PodEngineInfo(9000, 4, "nixl", 8998, 5500, 5700)
    assert parse_engine_info(notes.annotations()) == notes
    assert parse_engine_info(PodEngineInfo().annotations()) == PodEngineInfo()
    broken = {"fairlead.io/port": "-1", "fairlead.io/data-parallel": "many", "fairlead.io/kv-events-port": "99999"}
    assert parse_engine_info(broken) == PodEngineInfo()


def ranks(**parallelism: int) -> dict[str, Any]:
    return {"pools": [_POOL | {"parallelism": parallelism}]}


@pytest.mark.parametrize(
    ("engine", "changes", "field", "message"),
    [
        ("LlamaCpp", {"model": {"uri": "s3://bucket/a.gguf"}}, "model.uri", "cannot load s3:// weights"),
        ("LlamaCpp", {"model": {"uri": "pvc:models/folder"}}, "model.uri", "loads one GGUF file"),
        ("LlamaCpp", {"model": {"uri": "hf://a/b-GGUF", "revision": "main"}}, "model.revision", "no revision"),
        ("LlamaCpp", ranks(data=2), "pools[main].parallelism", "on one node"),
        ("LlamaCpp", ranks(tensor=2, pipeline=2), "pools[main].parallelism", "by rows or by layers"),
        ("TRTLLM", {"model": {"uri": "s3://bucket/qwen"}}, "model.uri", "cannot load s3:// weights"),
        ("TRTLLM", ranks(data=2), "pools[main].parallelism", "on one node"),
        ("TRTLLM", ranks(tensor=2, nodes=2), "pools[main].parallelism", "on one node"),
    ],
)
def test_what_an_engine_cannot_do_is_named(engine: str, changes: dict[str, Any], field: str, message: str) -> None:
    spec = {"model": {"uri": "hf://a/b-GGUF"}, "engine": {"type": engine, "image": "engine:1"}} | changes
    problem = only_problem(model_of(**spec))
    assert problem.field == f"spec.{field}"
    assert message in problem.message
    assert problem.fix


def test_llama_cpp_offers_no_slots_no_page_and_fetches_nothing() -> None:
    model = model_of(model={"uri": "hf://a/b-GGUF:Q4_K_M"}, engine={"type": "LlamaCpp", "image": "llama.cpp:server"})
    arguments = arguments_of(workload(model))
    assert arguments[0] == "--hf-repo=a/b-GGUF:Q4_K_M"
    assert {"--no-slots", "--no-ui", "--no-mmproj", "--metrics"} <= set(arguments)


ENGINE_RIGHTS = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def templated(spec: dict[str, Any]) -> dict[str, Any]:
    return pod_of(workload(model_of(pools=[{**_POOL, "template": {"spec": spec}}])))


@pytest.mark.parametrize(
    ("own", "rights"),
    [
        ({"privileged": True}, {"capabilities": {"drop": ["ALL"]}, "privileged": True}),
        ({"privileged": True, "allowPrivilegeEscalation": False}, {**ENGINE_RIGHTS, "privileged": True}),
        (
            {"capabilities": {"add": ["CAP_SYS_ADMIN"]}},
            {"capabilities": {"drop": ["ALL"], "add": ["CAP_SYS_ADMIN"]}},
        ),
        (
            {"capabilities": {"add": ["IPC_LOCK"]}},
            {**ENGINE_RIGHTS, "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]}},
        ),
        ({"runAsUser": 0}, {**ENGINE_RIGHTS, "runAsUser": 0, "runAsNonRoot": False}),
    ],
)
def test_rights_of_the_template_take_the_place_of_ours_that_contradict(
    own: dict[str, Any], rights: dict[str, Any]
) -> None:
    (engine,) = templated({"containers": [{"name": "engine", "securityContext": own}]})["containers"]
    assert engine["securityContext"] == rights


def test_pod_that_runs_as_root_is_not_said_to_be_another_user() -> None:
    assert "runAsNonRoot" not in templated({"securityContext": {"runAsUser": 0}})["securityContext"]
    kept = templated({"securityContext": {"runAsUser": 0, "runAsNonRoot": True}})["securityContext"]
    assert (kept["runAsUser"], kept["runAsNonRoot"]) == (0, True)  # lint says that no node starts it
    helper = {"name": "chown", "image": "a", "securityContext": {"runAsUser": 0}}
    (rendered,) = templated({"initContainers": [helper]})["initContainers"]
    assert rendered["securityContext"] == {"runAsUser": 0, "runAsNonRoot": False}


def test_request_of_ours_above_a_limit_of_the_template_goes() -> None:
    def requests(resources: dict[str, Any]) -> dict[str, Any]:
        (engine,) = templated({"containers": [{"name": "engine", "resources": resources}]})["containers"]
        found: dict[str, Any] = engine["resources"]["requests"]
        return found

    ours = requests({})
    assert {"cpu", "memory"} <= ours.keys()
    assert requests({"limits": {"memory": "1Mi"}}) == {name: ours[name] for name in ours if name != "memory"}
    assert requests({"limits": {"memory": "9000Gi"}}) == ours
    assert requests({"limits": {"memory": "1Mi"}, "requests": {"memory": "2Mi"}})["memory"] == "2Mi"


@pytest.mark.parametrize(
    "spec",
    [
        {"containers": [{"name": "helper", "image": "a", "securityContext": "text"}]},
        {"containers": [{"name": "helper", "image": "a", "securityContext": {"capabilities": [1]}}]},
        {"containers": [{"name": "engine", "resources": {"limits": {"memory": ["x"]}}}]},
        {"containers": [{"name": "engine", "securityContext": {"capabilities": {"add": 7}}}]},
    ],
)
def test_values_of_another_form_are_left_to_the_api_server(spec: dict[str, Any]) -> None:
    assert templated(spec)["containers"]
